"""Keep freed memory in the process, so that every step does not ask the system for its activations again.

glibc gives blocks above a threshold (32 MB at most by itself) straight back to the system, and each new one
costs a page fault per 4 KiB: 5 to 20 % of the time of a training step on a CPU (LOG.md). The numbers that are
computed do not change.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; whether it agreed. Elsewhere nothing happens."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 64 << 20))
    return all(bool(mallopt(name, value)) for name, value in settings)
