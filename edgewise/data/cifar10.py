"""CIFAR-10: found in a folder or downloaded once, and read without trusting its pickles."""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import pickletools
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import requests
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from edgewise.data.dataset import Dataset
from edgewise.errors import EdgewiseError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
META = "batches.meta"
FILES = (*TRAIN, TEST, META)

ROWS = 10_000  # examples in a batch
SHAPE = (3, 32, 32)
FILE_LIMIT = 64 << 20  # bytes; a real batch has 31 MB
CHUNK = 64 << 10  # bytes; what a cut connection can lose
TIMEOUT = 30  # seconds without a byte

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load(folder: Path | None = None) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images, 3x32x32, ten classes.

    Read from `folder`, else from the folder that EDGEWISE_DATA names (either may hold the batches or the
    folder `cifar-10-batches-py`); else from the cache, downloaded into it once. EdgewiseError where files are
    missing or broken, or the download fails.
    """
    place = folder or (Path(os.environ["EDGEWISE_DATA"]) if os.environ.get("EDGEWISE_DATA") else None)
    return read(fetch() if place is None else find(place))


def find(folder: Path) -> Path:
    """Where under `folder` the seven files are; EdgewiseError that names those missing."""
    inner = folder / FOLDER
    place = inner if inner.is_dir() else folder
    missing = _missing(place)
    if missing:
        cure = f"give the folder that holds {FOLDER}/, or no data folder and no EDGEWISE_DATA to download it"
        raise EdgewiseError(f"CIFAR-10: {place} lacks {', '.join(missing)}: {cure}")
    return place


def read(place: Path) -> Dataset:
    """The dataset from a folder that holds the seven files."""
    batches = [_batch(place / name) for name in TRAIN]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return Dataset.of(
        "cifar10",
        train=(images, labels),
        test=_batch(place / TEST),
        classes=_names(place / META),
        moments=(MEAN, STD),
        augment="crop,flip",
    )


def _missing(place: Path) -> list[str]:
    return [name for name in FILES if not (place / name).is_file()]


# -- download


def fetch(url: str = URL, sha256: str = SHA256, cache: Path | None = None) -> Path:
    """The folder with the seven files in the cache, downloaded and unpacked if need be.

    An interrupted download goes on where it stopped; nothing gets its final name before it is complete and
    its checksum agrees. EdgewiseError for whatever goes wrong on the way.
    """
    cache = Path(pooch.os_cache("edgewise")) if cache is None else cache
    place = cache / FOLDER
    try:
        if _missing(place):
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(cache / f"{ARCHIVE}.lock"):
                if _missing(place):
                    _unpack(_archive(url, sha256, cache), place)
    except requests.RequestException as error:
        raise EdgewiseError(f"CIFAR-10: cannot download {url}: {_line(error)}: {_cure()}") from error
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise EdgewiseError(
            f"CIFAR-10: cannot fetch {url} into {cache}: {_line(error)}: {_cure()}"
        ) from error
    return place


def _cure() -> str:
    return f"run again to go on, or set EDGEWISE_DATA to a folder that holds {FOLDER}/"


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Several ranks of one machine start at once: one downloads, the others wait for its files."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _archive(url: str, sha256: str, cache: Path) -> Path:
    part = cache / f"{ARCHIVE}.part"

    def download(url: str, output_file: str, _: object) -> None:
        _resume(url, part)
        part.replace(output_file)

    return Path(pooch.retrieve(url, f"sha256:{sha256}", ARCHIVE, cache, downloader=download))


def _resume(url: str, part: Path) -> None:
    """Add to `part` what it lacks of the file at `url`; returns only when it is complete."""
    have = part.stat().st_size if part.exists() else 0
    # Without `identity` a server may compress, and ranges would then count other bytes than ours.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing beyond what we have: complete, or not this file at all
            if response.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                raise requests.RequestException("the server's file is shorter than our part of it")
            return
        response.raise_for_status()
        start = have if response.status_code == 206 else 0
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise requests.RequestException(f"the server answered with another range than bytes={start}-")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _receive(response, part, start, total)
    if total is not None and part.stat().st_size != total:
        raise requests.RequestException(f"connection ended at {part.stat().st_size} of {total} bytes")


def _receive(response: requests.Response, part: Path, start: int, total: int | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar, part.open("ab" if start else "wb") as file:
        task = bar.add_task("CIFAR-10", total=total, completed=start)
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            bar.advance(task, len(chunk))


def _unpack(archive: Path, place: Path) -> None:
    """Copy the seven files out of the archive by name, each atomically; nothing else of it is looked at."""
    place.mkdir(exist_ok=True)
    with tarfile.open(archive, "r:gz") as tar:
        for name in FILES:
            try:
                member = tar.getmember(f"{FOLDER}/{name}")
            except KeyError:
                raise ValueError(f"{archive.name} lacks {FOLDER}/{name}") from None
            source = tar.extractfile(member) if member.isfile() and member.size <= FILE_LIMIT else None
            if source is None:
                raise ValueError(
                    f"{archive.name}: {member.name} is no plain file of at most {FILE_LIMIT} bytes"
                )
            written = place / f"{name}.part"
            written.write_bytes(source.read())
            written.replace(place / name)


# -- reading pickles without trusting them


class _Ndarray:
    """Stands for numpy.ndarray: keeps the state that a pickle gives it, and never lets NumPy see it."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    """Stands for numpy.dtype: only its code counts; byte order means nothing for single bytes."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _reconstruct(*_: object) -> _Ndarray:
    return _Ndarray()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes; no other codec, since looking one up by name imports modules."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Restricted(pickle.Unpickler):
    """An unpickler that knows these names only, and builds our own stand-ins for them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the name {module}.{name} is not allowed")
        return ALLOWED[module, name]


def _check_memo(raw: bytes) -> None:
    """The unpickler makes room up to the highest index it is told: five bytes could ask for 64 GB."""
    for opcode, index, _ in pickletools.genops(raw):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(index or 0) > len(raw):
            raise pickle.UnpicklingError(f"memo index {index} is out of bounds")


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        if not 0 < size <= FILE_LIMIT:
            raise EdgewiseError(f"CIFAR-10: {file} has {size} bytes; legal: 1 to {FILE_LIMIT}")
        raw = file.read_bytes()
        _check_memo(raw)
        content = _Restricted(io.BytesIO(raw), encoding="bytes").load()
    except EdgewiseError:
        raise
    except Exception as error:  # broken bytes can make the unpickler raise anything at all
        raise EdgewiseError(f"CIFAR-10: cannot read {file}: {_line(error)}") from error
    if not isinstance(content, dict):
        raise _broken(file, f"holds a {type(content).__name__}, not a dictionary")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()
    }


def _batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (ROWS, 3, 32, 32) and labels (ROWS,) of one batch."""
    content = _unpickle(file)
    labels = content.get("labels")
    if not isinstance(labels, list) or len(labels) != ROWS:
        raise _broken(file, f"lacks its list of {ROWS} labels")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise _broken(file, "has labels other than 0 to 9")
    pixels = _pixels(file, content.get("data"))
    return np.frombuffer(pixels, np.uint8).reshape(ROWS, *SHAPE).copy(), np.array(labels, np.int64)


def _pixels(file: Path, array: object) -> bytes:
    state = array.state if isinstance(array, _Ndarray) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise _broken(file, "lacks its array 'data'")
    _, shape, dtype, fortran, raw = state
    code = dtype.code if isinstance(dtype, _Dtype) else None
    if shape != (ROWS, prod(SHAPE)) or code not in ("u1", b"u1") or fortran:
        raise _broken(file, f"has data other than uint8 ({ROWS}, {prod(SHAPE)}) in row order")
    if not isinstance(raw, bytes) or len(raw) != ROWS * prod(SHAPE):
        raise _broken(file, f"has other than {ROWS * prod(SHAPE)} bytes of pixels")
    return raw


def _names(file: Path) -> list[str]:
    names = _unpickle(file).get("label_names")
    if not isinstance(names, list) or len(names) != 10:
        raise _broken(file, "lacks its list of 10 label_names")
    if not all(isinstance(name, str | bytes) for name in names):
        raise _broken(file, "has label_names that are no text")
    return [_text(name) for name in names]


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _broken(file: Path, why: str) -> EdgewiseError:
    return EdgewiseError(f"CIFAR-10: {file} {why}: not an official batch, or a broken copy")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
