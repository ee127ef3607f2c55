"""Private files: their mode from the first byte on, what is refused, and waiting for one's turn."""

import os
import threading
from pathlib import Path

import pytest

from edgewise import files
from edgewise.errors import EdgewiseError


@pytest.mark.parametrize("mode", [files.PRIVATE, files.PUBLIC])
def test_a_file_has_exactly_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in ("old", "new"):
        files.write(path, content, mode)
        assert path.read_text() == content and path.stat().st_mode & 0o777 == mode
        path.chmod(0o666)


def test_a_secret_is_not_written_into_a_file_that_was_left_behind(tmp_path: Path) -> None:
    part = tmp_path / ".key.part"
    part.touch(0o666)
    with part.open("rb") as left:
        files.write(tmp_path / "key", "secret", files.PRIVATE)
        assert left.read() == b""
    part.symlink_to(tmp_path / "elsewhere")
    files.write(tmp_path / "key", "secret", files.PRIVATE)
    assert os.listdir(tmp_path) == ["key"]


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "a").chmod(0o644)
    assert files.read(tmp_path / "a", 5) == b"12345"
    with pytest.raises(EdgewiseError, match="longer than the 4 bytes"):
        files.read(tmp_path / "a", 4)
    with pytest.raises(EdgewiseError, match=r"open to others \(mode 0644\)"):
        files.read(tmp_path / "a", 5, private=True)
    with pytest.raises(EdgewiseError, match="cannot be read"):
        files.read(tmp_path / "b", 5)


def test_a_private_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    files.make_private(tmp_path / "a" / "b")
    files.make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch(0o600)
    with pytest.raises(EdgewiseError, match="cannot be made"):
        files.make_private(tmp_path / "file" / "c")


def test_who_comes_second_waits(tmp_path: Path) -> None:
    came, order = threading.Event(), []

    def second() -> None:
        came.set()
        with files.locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with files.locked(tmp_path):
        thread.start()
        assert came.wait(10)
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
