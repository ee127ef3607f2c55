"""Processes of this machine that become ranks, started before this one imports PyTorch: they do so meanwhile.

Each waits on its standard input for what it is to do, and ends when that does: none outlives this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgewise.errors import EdgewiseError

MOST = 1024  # ranks
GRACE = 10.0  # seconds for processes to go by themselves
LOOK = 2.0  # seconds in which one that has broken off is seen to have ended
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """How many cores this process may keep busy."""
    known = getattr(os, "sched_getaffinity", None)
    count = len(known(0)) if known else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        limit, period = QUOTA.read_text().split()
        count = min(count, max(1, round(int(limit) / int(period))))  # "max" is no number
    return count


def count(processes: str, most: int) -> int:
    """How many ranks `processes` names, "auto" as many as may pay; at most `most`.

    EdgewiseError if it is no number of processes.
    """
    if processes == "auto":
        return min(cores(), most)
    if not (processes.isascii() and processes.isdigit() and 1 <= int(processes) <= MOST):
        raise EdgewiseError(
            f"processes: {processes!r} is not a number of processes; legal: auto, or 1 to {MOST}"
        )
    return int(processes)


def launched() -> tuple[int, int] | None:
    """This process's rank and how many there are, where torchrun (or what speaks its language) started it."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in os.environ for name in names):
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Hired:
    """Processes that wait to be told which rank of which run they are: all ranks but rank 0."""

    def __init__(self, ranks: int) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.all: list[subprocess.Popen[bytes]] = [
            # A session of their own: Ctrl-C is for rank 0, which ends them.
            subprocess.Popen(
                [sys.executable, "-m", "edgewise", "rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            for _ in range(ranks - 1)
        ]

    @property
    def ranks(self) -> int:
        """With rank 0."""
        return len(self.all) + 1

    def tell(self, words: dict[str, Any]) -> None:
        """The run that they are for, and to each its rank."""
        for rank, process in enumerate(self.all, start=1):
            assert process.stdin is not None
            with suppress(OSError):  # one that has ended is missed when ranks meet
                process.stdin.write(json.dumps({"rank": rank, **words}).encode() + b"\n")
                process.stdin.flush()

    def fallen(self, look: float = LOOK) -> str:
        """In words, who has ended and should not have; nothing if that does not show in `look` seconds."""
        until = time.monotonic() + look
        while True:
            ended = [(process.poll(), rank) for rank, process in enumerate(self.all, start=1)]
            # A signal first (its status is negative): others may have ended because of it.
            if found := sorted((status, rank) for status, rank in ended if status is not None):
                return "rank {1} ended with status {0}".format(*found[0])
            if time.monotonic() >= until:
                return ""
            time.sleep(0.02)

    def keep(self, ranks: int) -> None:
        """End those beyond so many ranks."""
        beyond, self.all = self.all[ranks - 1 :], self.all[: ranks - 1]
        _end(beyond)

    def close(self, patient: bool = False) -> None:
        """End them; where `patient`, after a while for those who are on their way home."""
        until = time.monotonic() + (GRACE if patient else 0)
        for process in self.all:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        _end(self.all)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()  # which they watch
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
