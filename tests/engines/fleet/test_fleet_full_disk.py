"""A disk that fills up, on either side: it is logged, nothing is lost, and with room the round goes on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fleet_hostile import Open, Site, Waiting
from fleet_peer import until

from edgewise.files import make_private

SIZE = 4 << 20  # bytes of the disk


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own in a folder; the test is skipped where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system of its own cannot be mounted here ({error})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """No room is left in the file system of the folder."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0")
    assert os.statvfs(folder).f_bavail == 0
    try:
        yield
    finally:
        ballast.unlink(missing_ok=True)


def agents_lines(site: Site, event: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in site.log.read_text().splitlines()]
    return [row for row in rows if row["event"] == event and row["from"] == "edgewise.agent"]


@pytest.mark.slow
def test_a_spool_without_room_asks_again_until_there_is_some(tmp_path: Path) -> None:
    with small_disk(tmp_path / "home" / "spool"):
        site = Site(tmp_path, quorum=1.0, honest=(0, 1, 2))
        try:
            site.finish(site.start(), Open(1))
            result = site.start()
            for file in (tmp_path / "home" / "spool").rglob("small.updates"):
                file.unlink()  # no update of this round could take the room of those before
            with filled(tmp_path / "home" / "spool"):
                Waiting.gate.set()
                until(lambda: site.lines("deferred"), "it is logged")
                assert "No space left on device" in site.lines("deferred")[0]["words"]
                assert not result.done() and not site.lines("refused")
            site.finish(result, round := Open(2))
            assert round.took == {0, 1, 2}
        finally:
            site.close()


@pytest.mark.slow
def test_an_agent_without_room_for_its_memory_sends_when_there_is_some(tmp_path: Path) -> None:
    site = Site(tmp_path, quorum=1.0, honest=(0, 1, 2))
    make_private(tmp_path / "agents" / "1")
    with small_disk(tmp_path / "agents" / "1" / "memory"):
        try:
            site.finish(site.start(), Open(1))
            result = site.start()
            with filled(tmp_path / "agents" / "1" / "memory"):
                Waiting.gate.set()
                until(lambda: agents_lines(site, "deferred"), "it is logged")
                assert "No space left on device" in agents_lines(site, "deferred")[0]["words"]
                until(lambda: set(site.took(2)) == {0, 2}, "the others have answered")
            site.finish(result, round := Open(2))
            assert round.took == {0, 1, 2}
        finally:
            site.close()


@pytest.mark.slow
def test_a_journal_without_room_takes_nothing_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    with small_disk(tmp_path / "home"):
        site = Site(tmp_path, quorum=1.0, honest=(0, 1, 2))
        try:
            site.finish(site.start(), Open(1))
            result = site.start()
            until(lambda: site.courier.window.round == 2, "the round opens")
            with filled(tmp_path / "home"):
                Waiting.gate.set()
                until(lambda: site.lines("deferred"), "it is logged")
                assert not result.done() and not site.lines("refused")
            site.finish(result, round := Open(2))
            assert round.took == {0, 1, 2}
        finally:
            site.close()
