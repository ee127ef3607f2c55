"""Private files: their mode from the first byte on, what is refused, and waiting for one's turn."""

import os
import signal
import threading
from pathlib import Path

import pytest
from command import edgewise

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


# ---- files that belong together ----

TOGETHER = r"""
import errno, os, signal, sys
from pathlib import Path
from edgewise import files

which, at, text = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen = 0

def watch(event, arguments):
    global seen
    if event not in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"):
        return
    if event == "open" and not arguments[2] & os.O_WRONLY:
        return
    seen += 1
    if seen == at and which == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if seen == at and which == "stop":
        raise KeyboardInterrupt
    if seen == at and which == "full":
        raise OSError(errno.ENOSPC, "No space left on device")

sys.addaudithook(watch)
try:
    files.write_together(Path("m"), "m " + text, {"a": "a " + text, "b": "b " + text})
except KeyboardInterrupt:
    sys.exit(130)
except files.EdgewiseError as error:
    sys.exit(2 if "No space left" in str(error) else 1)
"""
OLD, NEW = ({name: f"{name} {text}" for name in "abm"} for text in ("old", "new"))


def there(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("before", [pytest.param("nothing", marks=pytest.mark.slow), "old"])
@pytest.mark.parametrize("which", ["kill", "stop", pytest.param("full", marks=pytest.mark.slow)])
def test_files_that_belong_together_are_there_together(which: str, before: str, tmp_path: Path) -> None:
    statuses, ends = [], []
    for at in range(1, 99):
        folder = tmp_path / str(at)
        folder.mkdir()
        if before == "old":
            files.write_together(folder / "m", OLD["m"], {name: OLD[name] for name in "ab"})
        done = edgewise(which, at, "new", folder=folder, program=TOGETHER)
        left = there(folder)
        statuses.append(done.status)
        if "m" in left:
            assert left in (OLD, NEW), (at, left)
        if which != "kill":  # it is told, and puts everything back
            assert left in ((OLD if before == "old" else {}), NEW), (at, left, done)
            assert at > 1 or left != NEW
        ends.append(left)
        files.write_together(folder / "m", NEW["m"], {name: NEW[name] for name in "ab"})
        assert there(folder) == NEW and sorted(os.listdir(folder)) == ["a", "b", "m"], at
        if done.status == 0 and left == NEW and statuses[-3:] == [0, 0, 0]:
            break
    told = {"kill": -signal.SIGKILL, "stop": 130, "full": 2}[which]
    assert statuses.count(told) > 10 and statuses[-1] == 0
    assert ends[0] == (OLD if before == "old" else {}) and ends[-1] == NEW


def test_where_no_file_can_be_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    files.check_writable(tmp_path / "a" / "b" / "c")
    for path, says in (
        ("file/x", "is no folder"),
        ("folder", "Is a directory"),
        ("file/a/b", "is no folder"),
    ):
        with pytest.raises(EdgewiseError, match=says):
            files.check_writable(tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
