"""The spool: an update comes in pieces, over streams and processes, and is the one that was announced."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest
from fleet_disk import full_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.engines.fleet import spool as spools
from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.spool import Arrival, DiskError, Spool
from edgewise.errors import EdgewiseError

CONTENT = bytes(range(256)) * 5
DIGEST = digest_of([CONTENT])


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def arrival(spool: Spool, offset: int = 0, digest: str = DIGEST, length: int = len(CONTENT)) -> Arrival:
    return Arrival(spool, 3, 7, digest, length, offset)


def stored(spool: Spool) -> int:
    return sum(path.stat().st_size for path in spool.folder.rglob("*.update"))


def test_an_update_in_one_piece(spool: Spool) -> None:
    coming = arrival(spool)
    coming.write(CONTENT)
    assert coming.complete
    coming.finish()
    assert spool.view(3, 7, DIGEST) == CONTENT and spool.arrived(3, 7, DIGEST) == len(CONTENT)
    assert spool.size == stored(spool) == len(CONTENT)


@settings(max_examples=30)
@given(st.data())
def test_an_update_that_is_cut_off_again_and_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Each stream goes on anywhere before the end of what is here, in this process or the next."""
    spool = Spool(tmp_path_factory.mktemp("spool"))
    for _ in range(data.draw(st.integers(0, 4))):
        here = spool.arrived(3, 7, DIGEST)
        coming = arrival(spool, at := data.draw(st.integers(0, here)))
        for end in sorted(data.draw(st.lists(st.integers(at, len(CONTENT) - 1), max_size=3))):
            coming.write(CONTENT[at:end])
            at = end
        coming.close()
        assert spool.size == stored(spool)
        if data.draw(st.booleans()):
            spool = Spool(spool.folder)
            assert spool.size == stored(spool)
    coming = arrival(spool, at := spool.arrived(3, 7, DIGEST))
    coming.write(CONTENT[at:])
    assert coming.complete
    coming.finish()
    assert spool.view(3, 7, DIGEST) == CONTENT and spool.size == len(CONTENT)


@pytest.mark.parametrize("at", range(0, len(CONTENT) + 1, 128))
def test_it_goes_on_from_every_offset(spool: Spool, at: int) -> None:
    first = arrival(spool)
    first.write(CONTENT[:at])
    first.close()
    second = arrival(spool, at)
    second.write(CONTENT[at:])  # nothing, where all was here
    assert second.complete
    second.finish()
    assert spool.view(3, 7, DIGEST) == CONTENT and spool.size == stored(spool)


def test_it_does_not_go_on_beyond_what_is_here(spool: Spool) -> None:
    first = arrival(spool)
    first.write(CONTENT[:100])
    first.close()
    second = arrival(spool, 101)
    with pytest.raises(EdgewiseError, match="goes on at 101, of which 100 bytes are here"):
        second.write(CONTENT[101:])
    second.close()
    assert spool.size == stored(spool) == 100


def test_it_is_not_longer_than_announced(spool: Spool) -> None:
    coming = arrival(spool)
    coming.write(CONTENT)
    with pytest.raises(EdgewiseError, match=f"longer than the {len(CONTENT)} bytes"):
        coming.write(b"x")
    coming.close()
    assert spool.size == stored(spool) == len(CONTENT)


@pytest.mark.parametrize("twice", [False, True])
def test_other_bytes_than_announced_are_thrown_away(spool: Spool, twice: bool) -> None:
    coming = arrival(spool)
    coming.write(CONTENT[:-1] + b"x")
    with pytest.raises(EdgewiseError, match="do not have the digest"):
        coming.finish()
    if twice:
        coming.discard()
    assert spool.arrived(3, 7, DIGEST) == 0 and spool.size == stored(spool) == 0


@pytest.mark.parametrize("found", [CONTENT[:-1], b"", CONTENT[::-1]])
def test_a_file_that_changed_while_the_coordinator_was_away_is_not_read(spool: Spool, found: bytes) -> None:
    coming = arrival(spool)
    coming.write(CONTENT)
    coming.finish()
    path = spool.file(3, 7, DIGEST)
    path.write_bytes(found)
    with pytest.raises(EdgewiseError, match="damaged" if found else "it is empty"):
        Spool(spool.folder).view(3, 7, DIGEST)
    path.unlink()
    with pytest.raises(EdgewiseError, match="cannot be read"):
        spool.view(3, 7, DIGEST)


def cached(path: Path) -> int:
    """Pages of a file that the system holds in memory."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        assert mincore(ctypes.byref(first), ctypes.c_size_t(size), found) == 0
        del first
    return sum(page & 1 for page in found)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what it holds in memory")
def test_the_system_holds_a_large_update_until_its_round_is_over(tmp_path: Path) -> None:
    spool, content = Spool(tmp_path / "spool"), bytes(spools.LARGE)
    digest = digest_of([content])
    for round in (3, 4):
        coming = Arrival(spool, round, 7, digest, len(content))
        coming.write(content)
        coming.finish()
    pages = {round: cached(spool.file(round, 7, digest)) for round in (3, 4)}
    if pages[3] == 0:
        pytest.skip("a file system that holds nothing in memory")
    spool.cool(3)
    assert cached(spool.file(4, 7, digest)) == pages[4]
    if cached(spool.file(3, 7, digest)) == pages[3]:
        pytest.skip("a file system that lives in memory")
    assert cached(spool.file(3, 7, digest)) == 0
    assert spool.view(3, 7, digest) == content and spool.size == stored(spool) == 2 * len(content)


def test_what_is_written_to_a_view_is_not_written_to_the_file(spool: Spool) -> None:
    coming = arrival(spool)
    coming.write(CONTENT)
    coming.finish()
    view = spool.view(3, 7, DIGEST)
    view[0] ^= 255
    assert spool.view(3, 7, DIGEST) == CONTENT == spool.file(3, 7, DIGEST).read_bytes()


def test_updates_of_other_devices_and_rounds_lie_apart_and_a_device_has_room_for_one(spool: Spool) -> None:
    places = [(1, 1), (1, 11), (11, 1)]
    for text in (b"a", b"b"):
        content = text * 10
        for round, device in places:
            coming = Arrival(spool, round, device, digest_of([content]), len(content))
            coming.write(content)
            coming.finish()
        for round, device in places:
            assert spool.view(round, device, digest_of([content])) == content
        assert spool.size == stored(spool) == 30


def test_sweeping(spool: Spool) -> None:
    spool.sweep(5)  # there is no folder yet
    for round in (1, 2, 9, 10):
        coming = Arrival(spool, round, 0, DIGEST, len(CONTENT))
        coming.write(CONTENT)
        coming.finish()
    (spool.folder / "notes").mkdir()
    spool.sweep(9)
    assert sorted(path.name for path in spool.folder.iterdir()) == ["10", "notes"]
    assert spool.size == stored(spool) == len(CONTENT)
    spool.sweep(9)
    assert spool.size == stored(spool)


def test_what_arrives_for_a_round_that_was_swept_meanwhile(spool: Spool) -> None:
    coming = arrival(spool)
    coming.write(CONTENT[:500])
    spool.sweep(3)
    coming.write(CONTENT[500:])
    coming.finish()
    coming.discard()
    assert spool.size == stored(spool) == 0


def test_crowded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "BUDGET", len(CONTENT))
    coming = arrival(spool)
    coming.write(CONTENT)
    assert not spool.crowded
    other = Arrival(spool, 3, 8, DIGEST, len(CONTENT))
    other.write(CONTENT[:1])
    assert spool.crowded
    other.close(), coming.close()
    spool.sweep(3)
    assert not spool.crowded


@pytest.mark.parametrize("room", [0, 1, 100, 599])
def test_a_full_disk_and_then_room_again(spool: Spool, room: int) -> None:
    coming = arrival(spool)
    with full_disk(300 + room):
        coming.write(CONTENT[:300])
        with pytest.raises(DiskError, match=r"7-.*\.update: cannot be written"):
            coming.write(CONTENT[300:900])
    coming.close()
    assert spool.size == stored(spool) == 300 + room
    again = arrival(spool, at := spool.arrived(3, 7, DIGEST))
    again.write(CONTENT[at:])
    again.finish()
    assert spool.view(3, 7, DIGEST) == CONTENT and spool.size == stored(spool)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(DiskError, match="cannot be written"):
        arrival(Spool(tmp_path / "spool")).write(CONTENT)


def test_what_may_not_have_reached_the_disk_is_not_gone_on_from(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = arrival(spool)
    coming.write(CONTENT)

    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(spools.os, "fsync", refuse)
    with pytest.raises(DiskError, match="cannot be written"):
        coming.finish()
    assert spool.arrived(3, 7, DIGEST) == 0 == spool.size


def test_the_disk_begins_with_a_long_update_before_all_of_it_is_here(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "PART", 500)
    told = list[tuple[int, ...]]()
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *rest: told.append(rest), raising=False)
    coming = arrival(spool)
    for start in range(0, len(CONTENT), 256):
        coming.write(CONTENT[start : start + 256])
    coming.finish()
    assert told == [(0, 512, 4), (512, 512, 4)]
    assert spool.view(3, 7, DIGEST) == CONTENT
