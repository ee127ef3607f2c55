"""As many connections as the system lets a process have: each takes a file descriptor."""

from __future__ import annotations

import resource
import warnings

from edgewise.errors import EdgewiseWarning

OTHERS = 256  # descriptors for files, libraries and short-lived connections
JOINING = 1000  # connections to the port for joining at most


def allow_connections(wanted: int | None = None) -> int:
    """Raise this process's limit of open files as far as it may; the connections that leaves room for.

    Warns if that is fewer than `wanted`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = hard - OTHERS if hard != resource.RLIM_INFINITY else 1 << 30
    if wanted is not None and wanted > room:
        text = f"open files: {hard} are allowed, room for {room} connections of {wanted}; raise ulimit -n"
        warnings.warn(text, EdgewiseWarning, stacklevel=2)
    return room


def shares() -> tuple[int, int]:
    """Connections that the port of agents and the port for joining may hold.

    What comes beyond them is closed at once. Strangers can open as many as they like, and are not to take the
    descriptors that the journal and the spool need.
    """
    room = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHERS, 32)
    joining = min(JOINING, room // 4)
    return min(room - joining, 1 << 20), joining
