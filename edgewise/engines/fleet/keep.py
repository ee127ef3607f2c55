"""What a device remembers, on its own disk: the memory that is committed, and the one that may become it.

A memory is written before the update that it belongs to is sent, and takes the committed one's place, by
one rename, when the coordinator has said that the update counts. A device that dies in between asks what
became of it. So its place in its data, what its codec owes and what its algorithm keeps are never ahead of
the coordinator, nor behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgewise.device import Memory
from edgewise.errors import EdgewiseError
from edgewise.files import one_line, rename
from edgewise.records import Checkpoint

CURRENT, PENDING = "current.safetensors", "pending.safetensors"


@dataclass(frozen=True)
class Pending:
    """A memory whose update (`digest`, of `round`) may or may not count."""

    round: int
    digest: bytes
    memory: Memory


class Memories(Protocol):
    """Where the device's memory lies: `Keep` on a disk, which is to be waited for (`blocks`)."""

    blocks: bool
    round: int
    memory: Memory
    pending: Pending | None

    def propose(self, round: int, digest: bytes, memory: Memory) -> None: ...
    def commit(self) -> None: ...
    def forget(self) -> None: ...


class Keep:
    """One run's memory in a folder. `round`: the last one in which this device's update counted."""

    blocks = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.round, self.memory = 0, Memory()
        self.pending: Pending | None = None
        with one_line(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        if (folder / CURRENT).exists():
            self.round, _, self.memory = _load(folder / CURRENT)
        if (folder / PENDING).exists():
            self.pending = Pending(*_load(folder / PENDING))

    def propose(self, round: int, digest: bytes, memory: Memory) -> None:
        """Make a memory last, before its update is sent."""
        note = {"round": round, "digest": digest.hex(), "step": memory.step}
        Checkpoint(memory.tensors(), note).save(self.folder / PENDING)
        self.pending = Pending(round, digest, memory)

    def commit(self) -> None:
        """The update counts."""
        assert self.pending is not None
        rename(self.folder / PENDING, self.folder / CURRENT)
        self.round, self.memory, self.pending = self.pending.round, self.pending.memory, None

    def forget(self) -> None:
        """The update does not count: the device stands where it stood."""
        (self.folder / PENDING).unlink(missing_ok=True)
        self.pending = None


def _load(path: Path) -> tuple[int, bytes, Memory]:
    found = Checkpoint.load(path)
    try:
        round, digest, step = found.note["round"], bytes.fromhex(found.note["digest"]), found.note["step"]
    except (KeyError, ValueError):
        raise EdgewiseError(f"{path}: not the memory of a device") from None
    return round, digest, Memory.of(step, found.tensors)
