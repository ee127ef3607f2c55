"""Files that appear whole or not at all (temporary file, fsync, rename), and files for their owner alone."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgewise.errors import EdgewiseError

PRIVATE, PRIVATE_FOLDER, PUBLIC = 0o600, 0o700, 0o644  # modes
OTHERS = 0o077  # the bits that let anyone but the owner in
LOCK = ".lock"
MANY = 16  # files that take longer one by one than the whole disk


@contextmanager
def one_line(path: Path, deed: str = "written") -> Iterator[None]:
    """Turn what the file system refuses (no space, no permission) into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise EdgewiseError(f"{path}: cannot be {deed} ({error.strerror or error})") from None


def write(path: Path, content: bytes | str, mode: int | None = None, lasting: bool = True) -> None:
    """Write a file atomically and durably; given a mode, with exactly that one and never a wider one.

    `lasting`: False if `settle` is to make it last, with others of its folder.
    """
    part = path.with_name(f".{path.name}.part")
    with one_line(path):
        try:
            with os.fdopen(_new(part, mode), "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            part.replace(path)
            if lasting:
                sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def settle(folder: Path, paths: Sequence[Path]) -> None:
    """Make files last that were just written in a folder."""
    if len(paths) > MANY:
        os.sync()  # all at once. It tells of no fault, and may not wait: so each is asked, too
    if paths:
        with one_line(folder):
            for path in (*paths, folder):
                _sync(path)


def rename(path: Path, to: Path) -> None:
    """Let a file take the place of another, durably: whatever happens, one of the two is there."""
    with one_line(to):
        path.replace(to)
        sync_folder(to.parent)


def write_together(main: Path, content: bytes | str, beside: Mapping[str, bytes | str]) -> None:
    """Write `main`, and files of other names in its folder, so that `main` is there only with its own.

    All are written whole in a hidden folder first, then put in place, `main` last. What fails or is
    interrupted leaves every file as it was; a kill while they are put in place leaves all the old ones, or
    all the new ones, or no `main`. The hidden folder that a kill leaves behind goes with the next writing.
    """
    folder, hidden = main.parent, main.with_name(f".{main.name}.part")
    names = [*beside, main.name]
    for name in names:
        check_writable(folder / name)
    with one_line(main):
        _clear(hidden)
        try:
            for part in (hidden / "new", hidden / "old"):
                part.mkdir(parents=True)
            for name, text in {**beside, main.name: content}.items():
                with one_line(folder / name):
                    write(hidden / "new" / name, text)
        except BaseException:  # Ctrl-C too
            _clear(hidden)
            raise
        _put(folder, hidden, names)
        _clear(hidden)


def _clear(hidden: Path) -> None:
    if hidden.is_dir() and not hidden.is_symlink():
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        hidden.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """EdgewiseError if no file can be at `path`: to be told before the work, not after it."""
    with one_line(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{above} is no folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write in {above}")


def _put(folder: Path, hidden: Path, names: list[str]) -> None:
    """Let hidden/new take the place of what is in the folder, the last name last; or leave it as it was."""
    try:
        for name in reversed(names):
            if (folder / name).exists():
                (folder / name).replace(hidden / "old" / name)
        sync_folder(folder)
        for name in names:
            (hidden / "new" / name).replace(folder / name)
        sync_folder(folder)
    except BaseException:  # Ctrl-C too
        _restore(folder, hidden, names)
        _clear(hidden)  # not if that failed: it still holds what was there
        raise


def _restore(folder: Path, hidden: Path, names: list[str]) -> None:
    for name in reversed(names):
        if not (hidden / "new" / name).exists():  # it is in the folder
            (folder / name).unlink(missing_ok=True)
    for name in names:
        if (hidden / "old" / name).exists():
            (hidden / "old" / name).replace(folder / name)


def _new(part: Path, mode: int | None) -> int:
    """The descriptor of an empty file to write."""
    if mode is None:
        return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    part.unlink(missing_ok=True)  # what was left behind may be open elsewhere
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    os.fchmod(descriptor, mode)
    return descriptor


def sync_folder(folder: Path) -> None:
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
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
