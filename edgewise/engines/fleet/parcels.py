"""What an agent has on its way: a task coming in, an update going out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Incoming:
    """A task on its way in."""

    head: Any
    chunks: list[bytes]
    missing: int

    def frames(self) -> list[bytes]:
        """One frame for each length; what is not stored is shorter."""
        content, found, start = b"".join(self.chunks), [], 0
        for length in self.head.lengths:
            found.append(content[start : start + length])
            start += length
        return found


@dataclass(frozen=True)
class Outgoing:
    """An update that is to be sent, until it is known whether it counts."""

    round: int
    digest: bytes
    frame: bytes
    seconds: float
