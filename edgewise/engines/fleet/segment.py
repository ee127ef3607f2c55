"""Small updates, one after the other in one file, which the journal makes last with the rows that name them.

An update that came in one message is never gone on with, and needs no file of its own. The journal's thread
appends it here while it writes the update's row, waits for the disk once for all updates of a commit, and
only then commits: no row names bytes that a loss of power could take. What no committed row names is written
over: after a checkpoint all of it. The file keeps its blocks for that, since bytes last sooner where the disk
has nothing to allocate.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.engines.fleet.digest import digest_of
from edgewise.engines.fleet.disk import DiskError, shown
from edgewise.errors import EdgewiseError
from edgewise.files import one_line, sync_folder
from edgewise.wire import Bytes

KEPT = 1 << 28  # bytes that the file has at most between two checkpoints; with more, one is due
PAGE = 4096  # bytes: an update begins at a page of its own, so a write that fails spoils no other


@dataclass(frozen=True)
class Place:
    """Where an update lies. `sound`: its bytes have had their digest in this process."""

    round: int
    device: int
    digest: str
    offset: int
    length: int
    sound: bool = field(default=False, compare=False)

    @property
    def next(self) -> int:
        """Where the one after it begins."""
        return -(-(self.offset + self.length) // PAGE) * PAGE


class Segment:
    """`append`, `sync` and `settle` are the journal's thread's, in this order; the rest is anybody's.

    `reached` is told of points at which tests kill (`faults.py`), with their round.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reached: Callable[[str, int], None] = lambda point, round: None
        self._lock = threading.Lock()
        self._places: dict[tuple[int, int, str], Place] = {}  # of what counts
        self._new: list[Place] = []  # since the last commit
        self._file: int | None = None  # open from the first of them on
        self._made = False  # whether its name is known to last
        self.size = 0  # bytes up to the end of what counts

    @property
    def crowded(self) -> bool:
        return self.size > KEPT

    def resume(self, places: Iterable[Place]) -> None:
        """These are what counts, as the journal has it."""
        with self._lock:
            self._places = {(place.round, place.device, place.digest): place for place in places}
            self.size = max((place.next for place in self._places.values()), default=0)

    # ---- a commit ----

    @property
    def free(self) -> int:
        """The offset at which the next update begins."""
        return self._new[-1].next if self._new else self.size

    def append(self, round: int, device: int, digest: str, content: Bytes) -> None:
        """Write an update; it does not last before `sync`. DiskError."""
        with shown(self.path):
            if self._file is None:
                with self._lock:
                    self._file = self._open()
            place = Place(round, device, digest, self.free, len(content), sound=True)
            _write(self._file, content, place.offset)
        self.reached("arriving", round)
        self._new.append(place)

    def sync(self) -> None:
        """What was appended lasts when this returns. DiskError."""
        if not self._new:
            return
        assert self._file is not None
        with shown(self.path):
            os.fdatasync(self._file)
        for place in self._new:
            self.reached("spooled", place.round)

    def settle(self, kept: bool) -> None:
        """The rows were committed, or taken back: then the next updates take the place of these."""
        if self._file is None:
            return
        with self._lock:
            os.close(self._file)
            self._file = None
            if kept and self._new:
                self._places |= {(place.round, place.device, place.digest): place for place in self._new}
                self.size = self._new[-1].next
            self._new = []

    def _open(self) -> int:
        folder = self.path.parent
        if not self.path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._made = False
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not self._made:
                for above in (folder, *folder.parents[:2]):  # of the run, of the spool, of the home
                    sync_folder(above)
            self._made = True
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    # ---- what counts ----

    def read(self, round: int, device: int, digest: str) -> bytes | None:
        """A whole update, or None if it is not here; EdgewiseError if its bytes are not what was taken."""
        with self._lock:
            place = self._places.get((round, device, digest))
        if place is None:
            return None
        try:
            with self.path.open("rb") as file:
                content = os.pread(file.fileno(), place.length, place.offset)
        except OSError as error:
            # Where it was not swept, the fault is on this side, and the device's update is asked for again.
            kind = EdgewiseError if isinstance(error, FileNotFoundError) else DiskError
            raise kind(f"{self.path}: cannot be read ({error.strerror}); the journal needs it") from None
        if not place.sound and digest_of([content]) != digest:
            raise EdgewiseError(
                f"{self.path}: damaged (the digest of device {device}'s update of round {round} "
                "does not agree); the journal needs it"
            )
        return content

    def sweep(self, round: int) -> None:
        """Updates of this round and earlier ones are dispensable, and the next ones take their place."""
        with self._lock:
            self._places = {key: place for key, place in self._places.items() if place.round > round}
            if self._places or self._file is not None:
                return
            self.size = 0
            with one_line(self.path):
                if self.path.exists() and self.path.stat().st_size > KEPT:
                    os.truncate(self.path, KEPT)

    def clear(self) -> None:
        """The run is over: give the room back."""
        with self._lock, one_line(self.path, "removed"):
            self.path.unlink(missing_ok=True)


class Whole:
    """An update that came in one message: in memory, and on no disk before the journal takes it."""

    def __init__(self, round: int, device: int, digest: str, content: bytes) -> None:
        self.round, self.device, self.digest, self.content = round, device, digest, content
        self.length = len(content)

    def finish(self) -> None:
        """EdgewiseError if its digest is another than it announced."""
        if digest_of([self.content]) != self.digest:
            raise EdgewiseError("an update whose bytes do not have the digest it announced")

    def discard(self) -> None:
        """As an `Arrival`; nothing of it lies anywhere."""

    def close(self) -> None:
        """As an `Arrival`."""


def _write(descriptor: int, content: Bytes, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
