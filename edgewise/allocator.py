"""Keep freed memory in the process, so that every step does not ask the system for its activations again.

glibc gives blocks above a threshold (32 MB at most by itself) straight back to the system, and each new one
costs a page fault per 4 KiB: 5 to 20 % of the time of a training step on a CPU (LOG.md). The numbers that are
computed do not change.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # from glibc's malloc.h
CROWD = 50  # connections that come or go


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; whether it agreed. Elsewhere nothing happens."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 64 << 20))
    return all(bool(mallopt(name, value)) for name, value in settings)


def give_back() -> bool:
    """Give what was freed back to the system now; whether there was any. Elsewhere nothing happens."""
    if sys.platform != "linux":
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


class Rest:
    """When to give back what many comers at once took for a moment: each leaves holes that no one fills."""

    def __init__(self) -> None:
        self._before = self._rested = 0

    def due(self, count: int) -> bool:
        """Asked now and then, with how many are there.

        It is once they have stopped to come and go, and are many more or fewer than at the last time.
        """
        due = count == self._before and abs(count - self._rested) >= CROWD
        self._before = count
        if due:
            self._rested = count
        return due
