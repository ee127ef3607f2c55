"""Small updates in one file: they last before their rows do; a checkpoint gives their room to the next."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fleet_disk import full_disk

from edgewise.engines.fleet import segment as segments
from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.disk import DiskError
from edgewise.engines.fleet.journal import Entry, Journal, JournalError
from edgewise.engines.fleet.segment import PAGE, Place, Segment
from edgewise.errors import EdgewiseError

RUN = "0" * 32
PATIENCE = 60.0


def content(round: int, device: int, length: int = 5000) -> bytes:
    return (b"update of device %d in round %d. " % (device, round) * length)[:length]


def digest(update: bytes) -> str:
    return digest_of([update])


class Site:
    """A journal and its segment, as a coordinator that has just started has them."""

    def __init__(self, folder: Path, saved: int = 0) -> None:
        self.journal = Journal(folder / "journal.sqlite")
        self.segment = self.journal.segment = Segment(folder / "spool" / RUN / "small.updates")
        self.segment.resume(self.journal.places(RUN, saved).result(PATIENCE))

    def take(self, round: int, device: int, update: bytes | None = None) -> Future[None]:
        update = content(round, device) if update is None else update
        return self.journal.take(RUN, Entry(round, device, digest(update), len(update), 1.0, 1.0), update)

    def read(self, round: int, device: int, update: bytes | None = None) -> bytes | None:
        update = content(round, device) if update is None else update
        return self.segment.read(round, device, digest(update))

    def together(self, *asked: Any) -> list[Future[Any]]:
        """Ask all of this while the journal is held up, so that one commit holds it."""
        go = threading.Event()
        self.journal.ask(lambda database: go.wait(PATIENCE) and None)
        futures = [ask() for ask in asked]
        go.set()
        return futures


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.journal.close()


def test_what_was_taken_is_there_in_the_next_process(site: Site, tmp_path: Path) -> None:
    for future in [site.take(round, device) for round in (1, 2) for device in range(3)]:
        future.result(PATIENCE)
    assert all(site.read(round, device) == content(round, device) for round in (1, 2) for device in range(3))
    assert site.read(1, 0, b"another update") is None and site.read(3, 0) is None
    site.journal.close()
    again = Site(tmp_path, saved=1)
    assert again.read(2, 1) == content(2, 1) and again.read(1, 1) is None  # dispensable
    again.take(3, 0).result(PATIENCE)
    assert again.read(3, 0) == content(3, 0) and again.read(2, 2) == content(2, 2)
    again.journal.close()


def test_an_update_lasts_before_its_row_does(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every point at which a process may die, what its files say is true."""
    seen: list[tuple[str, int, bool]] = []
    synced = threading.Event()
    sync = os.fdatasync

    def note(descriptor: int) -> None:
        sync(descriptor)
        synced.set()

    def look(point: str, round: int) -> None:
        with closing(sqlite3.connect(site.journal.path)) as other:
            rows = other.execute("SELECT count(*) FROM updates").fetchone()[0]
        assert content(round, 0) in site.segment.path.read_bytes()
        seen.append((point, rows, synced.is_set()))

    monkeypatch.setattr(segments.os, "fdatasync", note)
    site.segment.reached = look
    for future in site.together(lambda: site.take(1, 0), lambda: site.take(1, 0)):
        future.result(PATIENCE)
    assert seen == [("arriving", 0, False), ("spooled", 0, True)]  # it came twice, and lies here once
    with closing(sqlite3.connect(site.journal.path)) as other:
        assert other.execute("SELECT round, device, place FROM updates").fetchall() == [(1, 0, 0)]


@pytest.mark.parametrize("point", ["arriving", "spooled"])
def test_what_was_not_committed_is_written_over(site: Site, tmp_path: Path, point: str) -> None:
    site.take(1, 0).result(PATIENCE)
    end = site.segment.size

    def die(at: str, round: int) -> None:
        if at == point:
            raise DiskError("gone")

    site.segment.reached = die
    with pytest.raises(EdgewiseError):
        site.take(1, 1).result(PATIENCE)
    assert site.journal.taken(RUN, 1, 1).result(PATIENCE) is None and site.read(1, 1) is None
    site.journal.close()
    again = Site(tmp_path)
    assert again.segment.size == end
    again.take(1, 2).result(PATIENCE)
    places = again.journal.places(RUN, 0).result(PATIENCE)
    assert [(place.device, place.offset) for place in places] == [(0, 0), (2, end)]
    assert again.read(1, 0) == content(1, 0) and again.read(1, 2) == content(1, 2)
    again.journal.close()


def test_another_update_of_a_device_takes_no_room(site: Site) -> None:
    site.take(1, 0).result(PATIENCE)
    size = site.segment.size
    with pytest.raises(EdgewiseError, match="another update of device 0 counts in round 1"):
        site.take(1, 0, b"another").result(PATIENCE)
    assert site.segment.size == size == site.segment.free


def test_a_disk_without_room_refuses_one_update_and_no_decision(site: Site) -> None:
    site.take(1, 0).result(PATIENCE)
    large = content(1, 1, 1 << 20)
    with full_disk(400_000):
        futures = site.together(
            lambda: site.journal.open_round(RUN, 2, [0]),
            lambda: site.take(1, 1, large),
            lambda: site.take(1, 2),
        )
        futures[0].result(PATIENCE)
        with pytest.raises(DiskError, match=r"small\.updates: cannot be written \(File too large\)"):
            futures[1].result(PATIENCE)
        futures[2].result(PATIENCE)
    assert site.journal.taken(RUN, 1, 1).result(PATIENCE) is None
    site.take(1, 1, large).result(PATIENCE)
    assert site.read(1, 1, large) == large and site.read(1, 2) == content(1, 2)


def test_nobody_is_told_of_what_may_not_have_reached_the_disk(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(segments.os, "fdatasync", refuse)
        futures = site.together(lambda: site.take(1, 0), lambda: site.take(1, 1))
        for future in futures:
            with pytest.raises(JournalError, match="Input/output error"):
                future.result(PATIENCE)
    assert site.journal.round(RUN, 1).result(PATIENCE) is None and site.segment.size == 0
    site.take(1, 1).result(PATIENCE)
    assert site.read(1, 1) == content(1, 1)


def test_updates_share_no_page(site: Site) -> None:
    for device, length in enumerate((1, PAGE - 1, PAGE, PAGE + 1, 0, 7)):
        site.take(1, device, content(1, device, length)).result(PATIENCE)
    places = site.journal.places(RUN, 0).result(PATIENCE)
    assert all(place.offset % PAGE == 0 for place in places)
    assert all(one.next <= other.offset for one, other in pairwise(places))
    for device, length in enumerate((1, PAGE - 1, PAGE, PAGE + 1, 0, 7)):
        update = content(1, device, length)
        assert site.read(1, device, update) == update


def test_the_file_is_used_again_after_every_checkpoint(site: Site, tmp_path: Path) -> None:
    """Fifty rounds take up the room of those between two checkpoints, and no bytes of old ones are read."""
    sizes = set()
    for round in range(1, 51):
        for future in [site.take(round, device) for device in range(3)]:
            future.result(PATIENCE)
        assert all(site.read(round, device) == content(round, device) for device in range(3))
        if round % 5 == 0:
            site.segment.sweep(round)
            assert site.segment.size == 0 and site.read(round, 0) is None
            sizes.add(site.segment.path.stat().st_size)
    assert len(sizes) == 1 and sizes.pop() <= 15 * 2 * PAGE
    site.take(51, 0).result(PATIENCE)
    site.journal.close()
    again = Site(tmp_path, saved=50)
    assert again.read(51, 0) == content(51, 0) and again.segment.size == 2 * PAGE
    again.segment.clear()
    assert not again.segment.path.exists()
    again.journal.close()


def test_what_is_later_than_the_checkpoint_stays(site: Site) -> None:
    for round in (1, 2):
        site.take(round, 0).result(PATIENCE)
    site.segment.sweep(1)
    site.take(3, 0).result(PATIENCE)
    assert [site.read(round, 0) for round in (1, 2, 3)] == [None, content(2, 0), content(3, 0)]


def test_a_file_longer_than_it_need_be_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "KEPT", 4 * PAGE)
    for device in range(2):
        site.take(1, device).result(PATIENCE)
    assert not site.segment.crowded
    site.take(1, 2).result(PATIENCE)
    assert site.segment.crowded
    site.segment.sweep(1)
    assert site.segment.path.stat().st_size == 4 * PAGE and not site.segment.crowded


@pytest.mark.parametrize("damage", ["a bit", "shorter", "gone"])
def test_bytes_that_changed_while_the_coordinator_was_away_are_not_read(
    site: Site, tmp_path: Path, damage: str
) -> None:
    site.take(1, 0).result(PATIENCE)
    site.take(1, 1).result(PATIENCE)
    site.journal.close()
    path = site.segment.path
    found = bytearray(path.read_bytes())
    found[2 * PAGE + 100] ^= 1
    path.write_bytes(found if damage == "a bit" else found[: 2 * PAGE + 50])
    if damage == "gone":
        path.unlink()
    again = Site(tmp_path)
    with pytest.raises(EdgewiseError, match="cannot be read" if damage == "gone" else "damaged"):
        again.read(1, 1)
    if damage != "gone":
        assert again.read(1, 0) == content(1, 0)
    again.journal.close()


def test_a_journal_from_before_there_was_a_segment(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as old:
        old.execute(
            "CREATE TABLE updates (run TEXT NOT NULL, round INTEGER NOT NULL, device INTEGER NOT NULL, "
            "digest TEXT NOT NULL, length INTEGER NOT NULL, norm REAL NOT NULL, seconds REAL NOT NULL, "
            "at REAL NOT NULL, PRIMARY KEY (run, round, device))"
        )
        old.execute("INSERT INTO updates VALUES (?, 1, 0, 'aa', 9, 1, 1, 1)", (RUN,))
        old.commit()
    site = Site(tmp_path)
    site.take(1, 1).result(PATIENCE)
    assert site.journal.round(RUN, 1).result(PATIENCE).taken == {0: "aa", 1: digest(content(1, 1))}
    assert site.journal.places(RUN, 0).result(PATIENCE) == [
        Place(1, 1, digest(content(1, 1)), 0, len(content(1, 1)))
    ]
    site.journal.close()
