"""CIFAR-10: hostile and broken files, missing files, and a download that is cut and goes on."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import requests
import torch

from edgewise.data import cifar10
from edgewise.errors import EdgewiseError

ROWS = 20
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def content(seed: int) -> dict[Any, Any]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8)
    return {b"data": pixels, b"labels": rng.integers(0, 10, ROWS).tolist()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny batches."""
    monkeypatch.setattr(cifar10, "ROWS", ROWS)
    monkeypatch.delenv("EDGEWISE_DATA", raising=False)
    folder = tmp_path / "given" / cifar10.FOLDER
    folder.mkdir(parents=True)
    for seed, name in enumerate([*cifar10.TRAIN, cifar10.TEST]):
        (folder / name).write_bytes(pickle.dumps(content(seed), protocol=2))
    (folder / cifar10.META).write_bytes(pickle.dumps({"label_names": NAMES}, protocol=2))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be downloaded here")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setattr(cifar10, "fetch", refuse)


def one_line(error: pytest.ExceptionInfo[EdgewiseError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("offline")
def test_reads_the_folder_or_the_one_around_it_or_the_environment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cifar10.load(place)
    assert found.shape == (3, 32, 32) and found.classes == tuple(NAMES) and found.augment == "crop,flip"
    assert len(found.train) == 5 * ROWS and len(found.test) == ROWS
    second = content(1)
    images = torch.from_numpy(second[b"data"]).view(ROWS, 3, 32, 32)
    assert torch.equal(found.train.images[ROWS : 2 * ROWS], images)
    assert found.train.labels[ROWS : 2 * ROWS].tolist() == second[b"labels"]
    assert found.test.labels.tolist() == content(5)[b"labels"]
    assert torch.equal(cifar10.load(place.parent).train.images, found.train.images)
    monkeypatch.setenv("EDGEWISE_DATA", str(place.parent))
    assert torch.equal(cifar10.load(None).train.images, found.train.images)
    monkeypatch.setenv("EDGEWISE_DATA", "/nowhere")
    assert torch.equal(cifar10.load(place).train.images, found.train.images)


@pytest.mark.usefixtures("offline")
def test_missing_files_are_named_and_nothing_is_downloaded(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "data_batch_3").unlink()
    (place / "test_batch").unlink()
    with pytest.raises(
        EdgewiseError, match=f"{re.escape(str(place))} lacks data_batch_3, test_batch: "
    ) as error:
        cifar10.load(place)
    one_line(error)
    monkeypatch.setenv("EDGEWISE_DATA", str(place.parent))
    with pytest.raises(EdgewiseError, match="lacks data_batch_3, test_batch"):
        cifar10.load(None)
    with pytest.raises(EdgewiseError, match="lacks data_batch_1, "):
        cifar10.load(place / "not there")


class Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def test_a_malicious_pickle_is_refused_and_does_not_run(place: Path, tmp_path: Path) -> None:
    import _codecs

    trap = tmp_path / "trap"
    for evil, name in [
        (Evil(os.mkdir, str(trap)), "mkdir"),
        (Evil(eval, "1"), "eval"),
        (Evil(np.load, "x"), "load"),
        (Evil(_codecs.encode, "x", "rot13"), "rot13"),
    ]:
        (place / "data_batch_2").write_bytes(pickle.dumps(content(0) | {b"x": evil}, protocol=2))
        with pytest.raises(EdgewiseError, match=rf"data_batch_2: .*{name}.* is not allowed") as error:
            cifar10.load(place)
        one_line(error)
    assert not trap.exists()


def pickled(**changes: Any) -> bytes:
    return pickle.dumps(content(0) | {key.encode(): value for key, value in changes.items()}, protocol=2)


PIXELS = np.zeros((ROWS, 3072), np.uint8)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"", "has 0 bytes"),
        (pickled()[:-5000], "cannot read"),
        (b"\x80" * 500, "cannot read"),
        (pickle.dumps([1]), "holds a list"),
        (pickled(labels=[0] * (ROWS - 1)), "list of 20 labels"),
        (pickled(labels=[0] * (ROWS - 1) + [10]), "labels other than 0 to 9"),
        (pickled(labels=[0] * (ROWS - 1) + [-1]), "labels other than 0 to 9"),
        (pickled(labels=[0.0] * ROWS), "labels other than 0 to 9"),
        (pickled(data=b"x" * ROWS * 3072), "lacks its array"),
        (pickled(data=PIXELS[1:]), "data other than uint8"),
        (pickled(data=PIXELS[:, 1:]), "data other than uint8"),
        (pickled(data=PIXELS.astype(np.int8)), "data other than uint8"),
        (pickled(data=np.asfortranarray(PIXELS)), "data other than uint8"),
        (b"\x80\x02}r\x00\x00\x00\x70.", "memo index 1879048192 is out of bounds"),
    ],
)
def test_a_broken_batch_is_one_line_that_names_the_file(place: Path, broken: bytes, message: str) -> None:
    (place / "data_batch_4").write_bytes(broken)
    with pytest.raises(EdgewiseError, match=rf"{re.escape(str(place / 'data_batch_4'))}.*") as error:
        cifar10.load(place)
    assert re.search(message, one_line(error))


def test_random_damage_never_ends_in_another_error(place: Path) -> None:
    good = pickled()
    structure = [*range(300), *range(len(good) - 100, len(good))]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(good)
        damaged[structure[rng.integers(len(structure))]] = rng.integers(256)
        (place / "data_batch_1").write_bytes(damaged)
        try:
            cifar10._batch(place / "data_batch_1")
        except EdgewiseError as error:
            assert "data_batch_1" in str(error)
            refused += 1
    assert refused > 20


def test_a_file_beyond_the_limit_is_not_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "FILE_LIMIT", 1000)
    with pytest.raises(EdgewiseError, match=r"data_batch_1 has \d+ bytes; legal: 1 to 1000"):
        cifar10.load(place)


@pytest.mark.parametrize("names", [None, NAMES[:9], [1] * 10])
def test_broken_class_names_are_refused(place: Path, names: object) -> None:
    (place / cifar10.META).write_bytes(pickle.dumps({b"label_names": names}))
    with pytest.raises(EdgewiseError, match=r"batches\.meta .*label_names"):
        cifar10.load(place)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_old_and_new_numpy_pickles_are_read(place: Path, module: str) -> None:
    raw = pickle.dumps(content(0), protocol=2)
    for name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        raw = raw.replace(b"c" + name + b"\n", b"c" + module.encode() + b"\n")
    assert module.encode() in raw
    (place / "data_batch_1").write_bytes(raw)
    assert cifar10.load(place).train.labels[:ROWS].tolist() == content(0)[b"labels"]


# -- download


class Server(ThreadingHTTPServer):
    """Serves one file; `cut_after` cuts the first answer short, `ranges` says whether it can go on."""

    body = b""
    cut_after: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.tar.gz"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        body = self.server.body
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(body[start:cut])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(body: bytes, **settings: Any) -> Iterator[Server]:
    with Server() as server:
        server.body = body
        for name, value in settings.items():
            setattr(server, name, value)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def packed(place: Path, leave_out: str = "", link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for name in cifar10.FILES:
            if name == link:
                member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
            elif name != leave_out:
                tar.add(place / name, f"{cifar10.FOLDER}/{name}")
        stray = tarfile.TarInfo("../stray")
        stray.size = 2
        tar.addfile(stray, io.BytesIO(b"no"))
    return out.getvalue()


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_a_cut_download_goes_on_where_it_stopped(place: Path, tmp_path: Path) -> None:
    body, cache = packed(place), tmp_path / "cache"
    assert len(body) > 4 * cifar10.CHUNK
    with serving(body, cut_after=3 * cifar10.CHUNK + 1000) as server:
        with pytest.raises(EdgewiseError, match=r"cannot download .*run again to go on") as error:
            cifar10.fetch(server.url, sha(body), cache)
        one_line(error)
        part = cache / f"{cifar10.ARCHIVE}.part"
        have = part.stat().st_size
        assert 0 < have < len(body) and part.read_bytes() == body[:have]
        assert not (cache / cifar10.ARCHIVE).exists() and not (cache / cifar10.FOLDER).exists()
        found = cifar10.fetch(server.url, sha(body), cache)
        assert server.asked == [None, f"bytes={have}-"]
        assert not part.exists()
        assert cifar10.fetch(server.url, sha(body), cache) == found and len(server.asked) == 2
    assert sorted(file.name for file in found.iterdir()) == sorted(cifar10.FILES)
    assert all((found / name).read_bytes() == (place / name).read_bytes() for name in cifar10.FILES)
    assert not (cache.parent / "stray").exists() and not (cache / "stray").exists()


def test_a_server_without_ranges_starts_over(place: Path, tmp_path: Path) -> None:
    body = packed(place)
    (tmp_path / f"{cifar10.ARCHIVE}.part").write_bytes(body[:1000])
    with serving(body, ranges=False) as server:
        found = cifar10.fetch(server.url, sha(body), tmp_path)
        assert server.asked == ["bytes=1000-"]
    assert len(cifar10.read(found).train) == 5 * ROWS


def test_a_part_that_was_already_complete_is_used(place: Path, tmp_path: Path) -> None:
    body = packed(place)
    (tmp_path / f"{cifar10.ARCHIVE}.part").write_bytes(body)
    with serving(body) as server:
        assert len(cifar10.read(cifar10.fetch(server.url, sha(body), tmp_path)).test) == ROWS


def test_a_part_of_something_longer_is_dropped(place: Path, tmp_path: Path) -> None:
    body = packed(place)
    (tmp_path / f"{cifar10.ARCHIVE}.part").write_bytes(body + b"more")
    with serving(body) as server:
        with pytest.raises(EdgewiseError, match="shorter than our part"):
            cifar10.fetch(server.url, sha(body), tmp_path)
        assert cifar10.fetch(server.url, sha(body), tmp_path).is_dir()


def test_a_wrong_checksum_leaves_nothing_behind(place: Path, tmp_path: Path) -> None:
    body = packed(place)
    with serving(body) as server:
        with pytest.raises(EdgewiseError, match=r"cannot fetch .*hash") as error:
            cifar10.fetch(server.url, sha(b"else"), tmp_path)
        one_line(error)
        assert [file.name for file in tmp_path.glob("cifar*")] == [f"{cifar10.ARCHIVE}.lock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"leave_out": "test_batch"}, "lacks .*test_batch"), ({"link": "test_batch"}, "no plain file")],
)
def test_an_archive_that_is_not_the_official_one(
    place: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    body = packed(place, **changes)
    with serving(body) as server, pytest.raises(EdgewiseError, match=message):
        cifar10.fetch(server.url, sha(body), tmp_path)
    assert not (tmp_path / cifar10.FOLDER / "test_batch").exists()


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url
    with pytest.raises(EdgewiseError, match=r"cannot download .*EDGEWISE_DATA") as error:
        cifar10.fetch(url, sha(b""), tmp_path)
    one_line(error)


def test_an_answer_of_404_is_one_line_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "do_GET", lambda self: self.send_error(404))
    with serving(b"x") as server, pytest.raises(EdgewiseError, match="404"):
        cifar10.fetch(server.url, sha(b""), tmp_path)
    assert not (tmp_path / f"{cifar10.ARCHIVE}.part").exists()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EdgewiseError, match="cannot fetch"):
        cifar10.fetch("http://127.0.0.1:9/x", sha(b""), tmp_path / "file")


def test_without_a_folder_the_cache_is_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "os_cache", lambda project: place.parent)
    assert len(cifar10.load(None).train) == 5 * ROWS


def test_the_real_thing() -> None:
    if not os.environ.get("EDGEWISE_DATA"):
        pytest.skip("needs CIFAR-10: set EDGEWISE_DATA to the folder that holds cifar-10-batches-py/")
    found = cifar10.load(None)
    assert len(found.train) == 50_000 and len(found.test) == 10_000 and found.classes == tuple(NAMES)
    assert torch.bincount(found.train.labels).tolist() == [5000] * 10
    assert torch.bincount(found.test.labels).tolist() == [1000] * 10
    measured = found.train.images.sum(dim=(0, 2, 3)).double() / (255 * 50_000 * 32 * 32)
    torch.testing.assert_close(measured, torch.tensor(found.mean).double(), rtol=0, atol=1e-3)
