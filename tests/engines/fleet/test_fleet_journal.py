"""The journal: what it says is done is on the disk, whoever asked at the same time; nothing else is lost."""

import shutil
import sqlite3
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_disk import full_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.engines.fleet.journal import Entry, Journal, JournalError, Opened
from edgewise.engines.fleet.roster import add, members
from edgewise.errors import EdgewiseError

RUN, PATIENCE = "run", 60
DIGEST = "d" * 64


def entry(round: int = 1, device: int = 0, digest: str = DIGEST, **other: float) -> Entry:
    return Entry(round, device, digest, 100, other.get("norm", 1.0), other.get("seconds", 0.5))


@contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder / "journal.sqlite")
    try:
        yield journal
    finally:
        journal.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with opened(tmp_path) as found:
        yield found


class Held:
    """Keeps the journal's thread busy, so that what is asked meanwhile waits for one commit."""

    def __init__(self, journal: Journal) -> None:
        self.go, began = threading.Event(), threading.Event()

        def wait(_: Any) -> None:
            began.set()
            self.go.wait(PATIENCE)

        self.held = journal.ask(wait)
        assert began.wait(PATIENCE)


def result(future: Future[Any]) -> Any:
    return future.result(PATIENCE)


# ---- rounds, updates, evaluations ----


def test_a_round_from_its_opening_to_its_close(journal: Journal) -> None:
    assert result(journal.round(RUN, 1)) is None
    result(journal.open_round(RUN, 1, [4, 2, 9]))
    assert result(journal.round(RUN, 1)) == Opened((4, 2, 9), False, {})
    result(journal.take(RUN, entry(device=2, digest="a" * 64)))
    result(journal.take(RUN, entry(device=9, digest="b" * 64)))
    result(journal.close_round(RUN, 1))
    assert result(journal.round(RUN, 1)) == Opened((4, 2, 9), True, {2: "a" * 64, 9: "b" * 64})
    assert result(journal.round("another run", 1)) is None


def test_rounds_that_a_checkpoint_rests_on_are_closed(journal: Journal) -> None:
    """A coordinator may die between its checkpoint and the close, which it does not wait for."""
    for number in (1, 2, 3):
        result(journal.open_round(RUN, number, [0]))
    result(journal.open_round("another run", 1, [0]))
    result(journal.close_round(RUN, 1))
    result(journal.close_before(RUN, 3))
    assert [result(journal.round(RUN, number)).closed for number in (1, 2, 3)] == [True, True, False]
    assert not result(journal.round("another run", 1)).closed


def test_a_round_that_could_not_be_opened_keeps_its_updates_and_is_not_closed(journal: Journal) -> None:
    """The disk was full when it was opened, and had room again when they came."""
    result(journal.take(RUN, entry(device=2)))
    assert result(journal.round(RUN, 1)) == Opened((), False, {2: DIGEST})
    with pytest.raises(JournalError, match="round 1 was not opened"):
        result(journal.close_round(RUN, 1))
    result(journal.open_round(RUN, 1, [2, 3]))
    assert result(journal.round(RUN, 1)) == Opened((2, 3), False, {2: DIGEST})


def test_an_update_counts_once(journal: Journal) -> None:
    result(journal.take(RUN, entry()))
    result(journal.take(RUN, entry()))  # the same one again: it does already
    with pytest.raises(EdgewiseError, match="another update of device 0 counts in round 1"):
        result(journal.take(RUN, entry(digest="e" * 64)))
    assert result(journal.taken(RUN, 1, 0)) == DIGEST
    assert result(journal.norms(RUN, 10)) == [1.0]
    result(journal.take("another run", entry(digest="e" * 64)))


def test_the_last_norms_the_oldest_first_and_the_last_round(journal: Journal) -> None:
    assert result(journal.norms(RUN, 10)) == [] and result(journal.last_taken(RUN, 3)) == 0
    for round in range(1, 7):
        result(journal.take(RUN, entry(round, 3, norm=float(round))))
    assert result(journal.norms(RUN, 4)) == [3.0, 4.0, 5.0, 6.0]
    assert result(journal.last_taken(RUN, 3)) == 6 and result(journal.last_taken(RUN, 4)) == 0


def test_an_evaluation_is_found_again(journal: Journal) -> None:
    assert result(journal.evaluation(RUN, 2)) is None
    result(journal.evaluated(RUN, 2, {"accuracy": 0.1, "loss": None}))
    assert result(journal.evaluation(RUN, 2)) == {"accuracy": 0.1, "loss": None}


def test_everything_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.open_round(RUN, 1, range(3))
        for device in range(3):
            journal.take(RUN, entry(device=device))
        journal.event("late", "the round is closed", RUN, 1, 2)
    with opened(tmp_path) as journal:
        assert result(journal.round(RUN, 1)) == Opened((0, 1, 2), False, dict.fromkeys(range(3), DIGEST))
        events = result(
            journal.ask(lambda one: one.execute("SELECT kind, round, device FROM events").fetchall())
        )
        assert events == [("late", 1, 2)]
    assert (tmp_path / "journal.sqlite").stat().st_mode & 0o777 == 0o600


# ---- one commit for all that wait ----


def test_what_is_asked_during_a_commit_shares_the_next_one(journal: Journal) -> None:
    statements: list[str] = []
    result(journal.ask(lambda database: database.set_trace_callback(statements.append)))
    held = Held(journal)
    statements.clear()
    futures = [journal.take(RUN, entry(device=device)) for device in range(200)]
    held.go.set()
    for future in futures:
        result(future)
    assert statements.count("COMMIT") == 2  # of what held it, and of all the others


def test_nobody_is_told_before_the_commit(journal: Journal) -> None:
    held = Held(journal)
    first = journal.take(RUN, entry())
    slow, go = threading.Event(), threading.Event()
    journal.ask(lambda _: (slow.set(), go.wait(PATIENCE)))
    held.go.set()
    assert slow.wait(PATIENCE)  # the first one was done, in the same group
    assert not first.done()
    go.set()
    result(first)


def fails(how: str) -> Any:
    def action(database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO events VALUES (0, NULL, NULL, NULL, 'half', 'done')")
        if how == "a user's mistake":
            raise EdgewiseError("no such device")
        if how == "a row that is there":
            database.execute("INSERT INTO rounds VALUES (?, 1, '[]', 0, NULL)", (RUN,))
        if how == "a number too large":
            database.execute("INSERT INTO events VALUES (?, NULL, NULL, NULL, '', '')", (1 << 64,))
        raise ValueError("a fault of ours")

    return action


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("a user's mistake", EdgewiseError),
        ("a row that is there", JournalError),
        ("a number too large", OverflowError),
        ("a fault of ours", ValueError),
    ],
)
def test_an_action_that_fails_takes_back_itself_alone(
    journal: Journal, how: str, kind: type[Exception]
) -> None:
    result(journal.open_round(RUN, 1, [0]))
    held = Held(journal)
    before, bad, after = (
        journal.take(RUN, entry(device=1)),
        journal.ask(fails(how)),
        journal.take(RUN, entry(device=2)),
    )
    held.go.set()
    with pytest.raises(kind):
        result(bad)
    result(before), result(after)
    assert set(result(journal.round(RUN, 1)).taken) == {1, 2}
    assert result(journal.ask(lambda one: one.execute("SELECT count(*) FROM events").fetchone())) == (0,)


def test_what_was_cancelled_while_it_waited_is_not_done(journal: Journal) -> None:
    held = Held(journal)
    kept, gone = journal.take(RUN, entry(device=1)), journal.take(RUN, entry(device=2))
    assert gone.cancel()
    held.go.set()
    result(kept)
    assert result(journal.taken(RUN, 1, 2)) is None and result(journal.taken(RUN, 1, 1)) == DIGEST


def test_many_threads_at_once(journal: Journal) -> None:
    """Every update that a thread was told of is there, and of two for one place exactly one counts."""
    won: list[tuple[int, int, str]] = []

    def work(name: int) -> None:
        for round in range(1, 21):
            for device in (name, 100):  # one place of its own, and one that all want
                digest = f"{name:064x}"
                try:
                    result(journal.take(RUN, entry(round, device, digest)))
                    won.append((round, device, digest))
                except EdgewiseError:
                    pass

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = result(
        journal.ask(lambda one: one.execute("SELECT round, device, digest FROM updates").fetchall())
    )
    assert sorted(found) == sorted(won) and len(found) == 20 * 6 + 20


# ---- disks and deaths ----


def test_a_full_disk_is_an_error_for_all_that_waited_and_it_goes_on_afterwards(
    journal: Journal, tmp_path: Path
) -> None:
    result(journal.open_round(RUN, 1, [0, 1]))
    log = tmp_path / "journal.sqlite-wal"
    with full_disk(log.stat().st_size + 1000):
        held = Held(journal)
        futures = [journal.take(RUN, entry(device=device)) for device in range(2)]
        held.go.set()
        for future in futures:
            with pytest.raises(JournalError, match="cannot be written"):
                result(future)
    assert result(journal.round(RUN, 1)) == Opened((0, 1), False, {})
    result(journal.take(RUN, entry(device=1)))
    assert result(journal.round(RUN, 1)).taken == {1: DIGEST}


def test_a_disk_that_is_full_in_the_middle_of_a_large_group(journal: Journal, tmp_path: Path) -> None:
    """SQLite takes a whole transaction back when its cache spills onto a full disk, savepoints and all."""
    result(journal.open_round(RUN, 1, [0]))
    log = tmp_path / "journal.sqlite-wal"
    with full_disk(log.stat().st_size + 10_000):
        result_of = journal.ask(
            lambda one: one.executemany(
                "INSERT INTO events VALUES (0, NULL, NULL, NULL, 'kind', ?)",
                (("x" * 4000,) for _ in range(3000)),
            )
        )
        with pytest.raises(JournalError):
            result(result_of)
    assert result(journal.round(RUN, 1)) == Opened((0,), False, {})
    result(journal.take(RUN, entry()))


def test_after_the_close_nothing_is_promised(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        before = journal.take(RUN, entry())
    assert result(before) is None
    with pytest.raises(JournalError, match="closed"):
        result(journal.take(RUN, entry(device=1)))
    with opened(tmp_path) as journal:
        assert result(journal.taken(RUN, 1, 0)) == DIGEST and result(journal.taken(RUN, 1, 1)) is None


def test_what_waits_at_the_close_is_done_or_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        held = Held(journal)
        waiting = [journal.take(RUN, entry(device=device)) for device in range(5)]
        closing = threading.Thread(target=journal.close)
        closing.start()
        held.go.set()
        closing.join(PATIENCE)
        assert [result(future) for future in waiting] == [None] * 5


@pytest.mark.parametrize("content", [b"no database at all, but text of some length" * 50, None])
def test_a_file_that_is_no_journal_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "journal.sqlite"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(EdgewiseError, match=r"journal\.sqlite: not a usable journal"):
        Journal(path)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a journal that was killed: twelve commits, of two rows each."""
    folder = tmp_path_factory.mktemp("journal")
    with opened(folder) as journal:
        result(add(journal, 7, "seven", "f7"))
        for round in range(1, 13):
            held = Held(journal)
            futures = [journal.open_round(RUN, round, [round]), journal.take(RUN, entry(round))]
            held.go.set()
            for future in futures:
                result(future)
        shutil.copytree(folder, folder / "killed", ignore=shutil.ignore_patterns("killed", "*-shm"))
    return folder / "killed"


def standing(folder: Path) -> list[tuple[bool, bool]]:
    """Of every round: whether it is open, and whether its update counts."""
    with opened(folder) as journal:
        found = [result(journal.round(RUN, round)) for round in range(1, 14)]
        return [(one is not None, bool(one and one.taken)) for one in found]


def test_a_death_between_commits_loses_nothing(lived: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lived, tmp_path / "copy")
    assert standing(folder) == [(True, True)] * 12 + [(False, False)]
    with opened(folder) as journal:
        assert [member.id for member in result(members(journal))] == [7]


@settings(max_examples=12)
@given(st.data())
def test_a_death_of_the_machine_leaves_whole_commits(lived: Path, data: st.DataObject) -> None:
    """The log as a power cut leaves it: any length of it, and nonsense in its last page."""
    log = (lived / "journal.sqlite-wal").read_bytes()
    page = struct.unpack(">I", log[8:12])[0] + 24
    cut = data.draw(st.integers(32, len(log)))
    torn = log[:cut] if data.draw(st.booleans()) else log[: cut - cut % page] + bytes(cut % page)
    folder = lived.parent / "torn"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lived, folder)
    (folder / "journal.sqlite-wal").write_bytes(torn)
    found = standing(folder)
    assert found == sorted(found, reverse=True)  # a prefix of what was told ...
    assert all(opened == taken for opened, taken in found)  # ... in whole groups
