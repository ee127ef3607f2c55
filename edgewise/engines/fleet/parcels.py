"""What an agent has on its way: a task coming in, an update going out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.wire import Bytes


@dataclass
class Incoming:
    """A task on its way in."""

    head: Any
    chunks: list[Bytes]
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
    frame: Sequence[Bytes]  # in pieces
    seconds: float

    @property
    def length(self) -> int:
        return sum(map(len, self.frame))
