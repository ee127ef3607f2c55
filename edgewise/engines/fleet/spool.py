"""The spool: updates as they arrive, one file each, until a checkpoint has made them dispensable.

A file is named by its device and the digest of all its bytes, so an upload that was cut off goes on where it
stopped, in the same process or the next. What counts is the journal's word, not that a file is there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import IO

from edgewise.errors import EdgewiseError

BUDGET = 1 << 30  # bytes kept since the last checkpoint before the next one is due


class Spool:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = sum(path.stat().st_size for path in folder.rglob("*.update")) if folder.exists() else 0

    @property
    def crowded(self) -> bool:
        return self.size > BUDGET

    def file(self, round: int, device: int, digest: str) -> Path:
        return self.folder / str(round) / f"{device}-{digest[:32]}.update"

    def arrived(self, round: int, device: int, digest: str) -> int:
        """How many bytes of an update are here already."""
        try:
            return self.file(round, device, digest).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, round: int, device: int, digest: str) -> bytes:
        """A whole update; EdgewiseError if its bytes are not those that were taken."""
        path = self.file(round, device, digest)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EdgewiseError(f"{path}: cannot be read ({error.strerror}); the journal needs it") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise EdgewiseError(f"{path}: damaged (its digest does not agree); the journal needs it")
        return content

    def sweep(self, round: int) -> None:
        """Remove what belongs to this round and earlier ones."""
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if path.name.isdigit() and int(path.name) <= round:
                self.size -= sum(file.stat().st_size for file in path.iterdir())
                shutil.rmtree(path)


class Arrival:
    """One update on its way into the spool. Its methods block on the disk."""

    def __init__(
        self, spool: Spool, round: int, device: int, digest: str, length: int, offset: int = 0
    ) -> None:
        """`length`: of the whole update; `offset`: where its bytes go on, of which all before must be here."""
        self.spool, self.round, self.device, self.digest, self.length = spool, round, device, digest, length
        self.path = spool.file(round, device, digest)
        self.offset = 0
        self.whole: bytes | None = None  # the bytes, where they came in one piece
        self._start = offset
        self._file: IO[bytes] | None = None
        self._sum = hashlib.sha256()

    @property
    def complete(self) -> bool:
        return self.offset == self.length

    def write(self, data: bytes) -> None:
        """The next bytes; EdgewiseError for more than were announced."""
        with _shown(self.path):
            if self._file is None:
                self._open(self._start)
            assert self._file is not None
            if self.offset + len(data) > self.length:
                raise EdgewiseError(f"an update longer than the {self.length} bytes it announced")
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._sum.update(data)
        self.offset += len(data)
        self.spool.size += len(data)
        if len(data) == self.length:
            self.whole = data

    def _open(self, offset: int) -> None:
        """Go on at `offset`; what is here beyond it is taken anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        while self.offset < offset:
            found = self._file.read(min(1 << 20, offset - self.offset))
            if not found:
                raise EdgewiseError(
                    f"an update that goes on at {offset}, of which {self.offset} bytes are here"
                )
            self._sum.update(found)
            self.offset += len(found)
        self.spool.size -= self._file.seek(0, os.SEEK_END) - offset
        self._file.truncate(offset)
        self._file.seek(offset)

    def finish(self) -> None:
        """All has come: check the digest and wait for the disk."""
        assert self._file is not None
        if self._sum.hexdigest() != self.digest:
            self.discard()
            raise EdgewiseError("an update whose bytes do not have the digest it announced")
        with _shown(self.path):
            os.fsync(self._file.fileno())
        self.close()

    def discard(self) -> None:
        self.close()
        self.spool.size -= self.offset
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _shown:
    """Turn what the disk refuses into one line that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise DiskError(f"{self.path}: cannot be written ({error.strerror})") from None


class DiskError(EdgewiseError):
    """The disk refused; the same update may go through later."""
