"""Files that appear whole or not at all (temporary file, fsync, rename), and files for their owner alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgewise.errors import EdgewiseError

PRIVATE, PRIVATE_FOLDER, PUBLIC = 0o600, 0o700, 0o644  # modes
OTHERS = 0o077  # the bits that let anyone but the owner in
LOCK = ".lock"


@contextmanager
def one_line(path: Path, deed: str = "written") -> Iterator[None]:
    """Turn what the file system refuses (no space, no permission) into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise EdgewiseError(f"{path}: cannot be {deed} ({error.strerror or error})") from None


def write(path: Path, content: bytes | str, mode: int | None = None) -> None:
    """Write a file atomically and durably; given a mode, with exactly that one and never a wider one."""
    part = path.with_name(f".{path.name}.part")
    with one_line(path):
        try:
            with os.fdopen(_new(part, mode), "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def rename(path: Path, to: Path) -> None:
    """Let a file take the place of another, durably: whatever happens, one of the two is there."""
    with one_line(to):
        path.replace(to)
        sync_folder(to.parent)


def _new(part: Path, mode: int | None) -> int:
    """The descriptor of an empty file to write."""
    if mode is None:
        return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    part.unlink(missing_ok=True)  # what was left behind may be open elsewhere
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    os.fchmod(descriptor, mode)
    return descriptor


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(folder: Path) -> None:
    """Make a folder that only its owner enters (0700). One that exists must be so already, or be empty."""
    with one_line(folder, "made"):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
            sync_folder(folder.parent)
        mode = folder.stat().st_mode & 0o777
        if mode & OTHERS and not any(folder.iterdir()):
            folder.chmod(mode := PRIVATE_FOLDER)
    if mode & OTHERS:
        raise EdgewiseError(f"{folder}: open to others (mode {mode:04o}); chmod 700 it, or name a new folder")


def read(path: Path, longest: int, private: bool = False) -> bytes:
    """A file of at most `longest` bytes. EdgewiseError if it is missing, unreadable or longer.

    And, if it is private, when anyone but its owner may open it.
    """
    with one_line(path, "read"), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if private and mode & OTHERS:
            raise EdgewiseError(f"{path}: a secret that is open to others (mode {mode:04o}); chmod 600 it")
        content = file.read(longest + 1)
    if len(content) > longest:
        raise EdgewiseError(f"{path}: longer than the {longest} bytes that it may have")
    return content


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One at a time, threads and programs: who comes second waits.

    By a file of its own, since a run (`records.Records`) holds the lock of its folder itself.
    """
    path = folder / LOCK
    with one_line(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
