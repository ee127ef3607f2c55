"""What a disk refuses: never a device's fault, and it may go through later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewise.errors import EdgewiseError


class DiskError(EdgewiseError):
    """The disk refused; the same update may go through later."""


@contextmanager
def shown(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror})") from None
