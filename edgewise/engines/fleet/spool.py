"""The spool: updates as they arrive, until a checkpoint has made them dispensable.

Those that came in one message lie together (`segment.py`); any other has a file, named by its device and the
digest of all its bytes, so an upload that was cut off goes on where it stopped, in the same process or the
next. What counts is the journal's word, not that a file is there.
"""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgewise.engines.fleet.digest import Digest, digest_of
from edgewise.engines.fleet.disk import DiskError, shown
from edgewise.engines.fleet.segment import Segment
from edgewise.errors import EdgewiseError
from edgewise.files import sync_folder
from edgewise.wire import Bytes, Sum

LARGE = 1 << 20  # bytes of a file that is worth a word to the system
PART = 1 << 23  # bytes of a file after which the disk begins with them: little is left for the end
SEGMENT = "small.updates"  # the file of those that came in one message
BUDGET = 1 << 32  # bytes kept since the last checkpoint before the next one is due


class Spool:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segment = Segment(folder / SEGMENT)
        self._lock, self.making = threading.Lock(), threading.Lock()
        self.size = 0  # bytes of all files of one update
        self._sizes: dict[tuple[str, str], dict[Path, int]] = {}  # of files, by round and device
        self._sound = set[Path]()  # whose digest this process has found to agree
        for path in folder.rglob("*.update") if folder.exists() else ():
            self.holds(path, path.stat().st_size)

    @property
    def crowded(self) -> bool:
        return self.size > BUDGET or self.segment.crowded

    def file(self, round: int, device: int, digest: str) -> Path:
        return self.folder / str(round) / f"{device}-{digest[:32]}.update"

    def arrived(self, round: int, device: int, digest: str) -> int:
        """How many bytes of an update are here already."""
        try:
            return self.file(round, device, digest).stat().st_size
        except FileNotFoundError:
            return 0

    def view(self, round: int, device: int, digest: str) -> memoryview:
        """A whole update; EdgewiseError if its bytes are not those that were taken.

        It is the file itself, mapped: nothing is copied before it is written to, and the file never is.
        """
        if (whole := self.segment.read(round, device, digest)) is not None:
            return memoryview(whole)
        path = self.file(round, device, digest)
        try:
            with path.open("rb") as file:
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is empty"
            # Where it was not swept, the fault is on this side, and the device's update is asked for again.
            kind = EdgewiseError if isinstance(error, FileNotFoundError) else DiskError
            raise kind(f"{path}: cannot be read ({reason}); the journal needs it") from None
        if path not in self._sound and digest_of([content]) != digest:
            raise EdgewiseError(f"{path}: damaged (its digest does not agree); the journal needs it")
        return content

    def holds(self, path: Path, size: int) -> None:
        """A file has this size now, or is gone; several threads say so."""
        owner = path.parent.name, path.name.partition("-")[0]
        with self._lock:
            files = self._sizes.setdefault(owner, {})
            self.size += size - files.pop(path, 0)
            if size:
                files[path] = size
                return
            self._sound.discard(path)
            if not files:
                del self._sizes[owner]

    def sound(self, path: Path) -> None:
        """The file's bytes have the digest that it is named by."""
        with self._lock:
            self._sound.add(path)

    def forget(self, round: int, device: int, but: Path) -> None:
        """Remove what else a device sent in a round: it has room for one update, not for many."""
        with self._lock:
            found = list(self._sizes.get((str(round), str(device)), ()))
        for path in found:
            if path != but:
                path.unlink(missing_ok=True)
                self.holds(path, 0)

    def cool(self, round: int) -> None:
        """Give back the memory in which the system holds a round's large files; they stay on the disk.

        Nobody is to read them again, unless the coordinator dies. Otherwise every update is written to memory
        that was not used before, which on a virtual machine takes up to ten times as long.
        """
        with self._lock:
            owned = [files for owner, files in self._sizes.items() if owner[0] == str(round)]
            large = [path for files in owned for path, size in files.items() if size >= LARGE]
        for path in large:
            with suppress(OSError), path.open("rb") as file:
                _hint(file.fileno())

    def sweep(self, round: int) -> None:
        """Remove what belongs to this round and earlier ones."""
        self.segment.sweep(round)
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if path.name.isdigit() and int(path.name) <= round:
                files = list(path.iterdir())
                shutil.rmtree(path)
                for file in files:
                    self.holds(file, 0)


class Arrival:
    """One update on its way into the spool. Its methods block on the disk."""

    def __init__(
        self, spool: Spool, round: int, device: int, digest: str, length: int, offset: int = 0
    ) -> None:
        """`length`: of the whole update; `offset`: where its bytes go on; all before must be here."""
        self.spool, self.round, self.device, self.digest, self.length = spool, round, device, digest, length
        self.path = spool.file(round, device, digest)
        self.offset = 0
        self.resumed = offset > 0
        self._start = self._begun = offset
        self._file: IO[bytes] | None = None
        self._sum, self.checksum = Digest(), Sum()

    @property
    def complete(self) -> bool:
        return self.offset == self.length

    def write(self, data: Bytes) -> None:
        """The next bytes; EdgewiseError for more than were announced."""
        with shown(self.path):
            if self._file is None:
                self._open(self._start)
            assert self._file is not None
            if self.offset + len(data) > self.length:
                raise EdgewiseError(f"an update longer than the {self.length} bytes it announced")
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            finally:
                self._measure()
        self._take(data)
        if self.offset - self._begun >= PART:
            _hint(self._file.fileno(), self._begun, self.offset - self._begun)
            self._begun = self.offset

    def _take(self, data: Bytes) -> None:
        self._sum.add(data)
        self.checksum.add(data)
        self.offset += len(data)

    def _open(self, offset: int) -> None:
        """Go on at `offset`; what is here beyond it is taken anew."""
        self._make_folder()
        self.spool.forget(self.round, self.device, self.path)
        self._file = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        while self.offset < offset:
            found = self._file.read(min(1 << 20, offset - self.offset))
            if not found:
                raise EdgewiseError(
                    f"an update that goes on at {offset}, of which {self.offset} bytes are here"
                )
            self._take(found)
        self._file.truncate(offset)
        self._file.seek(offset)
        self._measure()

    def _make_folder(self) -> None:
        folder = self.path.parent
        with self.spool.making:  # who finds a folder may rely on it: it is on the disk
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                for above in folder.parents[:3]:  # of the round, of the run, of the spool
                    sync_folder(above)

    def _measure(self) -> None:
        assert self._file is not None
        file = os.fstat(self._file.fileno())
        self.spool.holds(self.path, file.st_size if file.st_nlink else 0)  # it may have been swept

    def finish(self) -> None:
        """All has come: check the digest and wait for the disk.

        EdgewiseError if the digest is another; DiskError if that may be because a part of it had lain here,
        and had not outlived a loss of power.
        """
        assert self._file is not None
        if self._sum.hex != self.digest:
            self.discard()
            if self.resumed:
                raise DiskError(f"{self.path}: what was here of it is damaged")
            raise EdgewiseError("an update whose bytes do not have the digest it announced")
        try:
            with shown(self.path):
                os.fsync(self._file.fileno())
                with suppress(FileNotFoundError):  # its round was swept meanwhile: it is late
                    sync_folder(self.path.parent)
        except DiskError:
            self.discard()  # what is read back now may never have reached the disk: it must come whole again
            raise
        self.spool.sound(self.path)
        self.close()

    @property
    def content(self) -> Bytes:
        """All bytes, once it is finished."""
        return self.spool.view(self.round, self.device, self.digest)

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self.spool.holds(self.path, 0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _hint(descriptor: int, start: int = 0, size: int = 0) -> None:
    """Tell the system that nobody needs these bytes in memory; size 0: all to the end.

    Linux then begins to write out what is not on the disk yet, and gives back the memory of what is.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)


__all__ = ["Arrival", "DiskError", "Spool"]
