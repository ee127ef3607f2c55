"""A run's folder: files appear whole or not at all, and lose nothing that was committed."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import start, until
from safetensors import safe_open

from edgewise import records
from edgewise.errors import EdgewiseError
from edgewise.records import Checkpoint, Records

HOLDINGS = "device,examples,0\n0,3,3\n"


def row(number: int) -> dict[str, Any]:
    return {"round": number, "train_loss": 1 / number}


def checkpoint(round: int) -> Checkpoint:
    tensors = {"params": torch.arange(1000.0) * round, "buffers": torch.zeros(0), "momentum": torch.ones(3)}
    return Checkpoint(tensors, {"round": round, "steps": {"0": 5}})


def made(folder: Path, rounds: int = 0) -> Records:
    book = Records.create(folder, "version = 1\n", HOLDINGS)
    for number in range(1, rounds + 1):
        book.round(row(number))
    return book


# ---- writing ----


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    records.write(tmp_path / "a", "é")
    records.write(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_no_space_leaves_the_old_file(tmp_path: Path) -> None:
    records.write(tmp_path / "a", "old")
    (tmp_path / ".a.part").symlink_to("/dev/full")
    with pytest.raises(EdgewiseError) as told:
        records.write(tmp_path / "a", "new")
    assert str(told.value) == f"{tmp_path / 'a'}: cannot be written (No space left on device)"
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a"):
        with pytest.raises(EdgewiseError, match="a: cannot be written"):
            records.write(path, "new")


WRITER = """
import sys
from pathlib import Path
from edgewise import records
while True:
    for letter in "ab":
        records.write(Path("file"), letter * 1_000_000)
"""


def test_a_kill_between_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    for moment in range(5):
        writer = start(folder=tmp_path, program=WRITER)
        until((tmp_path / "file").exists)
        time.sleep(0.0053 * moment)
        writer.send(signal.SIGKILL)
        assert writer.wait().status == -signal.SIGKILL
        assert (tmp_path / "file").read_text() in ("a" * 1_000_000, "b" * 1_000_000)


# ---- rounds.jsonl ----


def test_rounds_can_be_read_while_they_are_written(tmp_path: Path) -> None:
    book = made(tmp_path)
    assert records.rows(tmp_path) == []
    for number in (1, 2):
        book.round(row(number))
        assert records.rows(tmp_path) == [row(1), row(2)][:number]
    with (tmp_path / records.ROUNDS).open("ab") as file:
        file.write(b'{"round": 3')  # as a reader may see a line on its way
    assert records.rows(tmp_path) == [row(1), row(2)]
    book.close()


@pytest.mark.parametrize("torn", [b"", b'{"round": 4, "tr', b'{"round": 4}', b"\n", b"\x00\x00\xff", b"3\n"])
def test_reopening_cuts_back_to_the_checkpoint(tmp_path: Path, torn: bytes) -> None:
    book = made(tmp_path, rounds=3)
    book.close()
    path = tmp_path / records.ROUNDS
    before = path.read_bytes()
    path.write_bytes(before + torn)
    book = Records.reopen(tmp_path)
    book.cut(2, HOLDINGS)
    assert path.read_bytes() == b"".join(before.splitlines(keepends=True)[:2])
    book.round(row(3))
    book.close()
    assert path.read_bytes() == before


def test_reopening_before_the_first_checkpoint_begins_again(tmp_path: Path) -> None:
    made(tmp_path, rounds=3).close()
    book = Records.reopen(tmp_path)
    book.cut(0, HOLDINGS)
    book.close()
    assert records.rows(tmp_path) == []


def without_first(lines: list[bytes]) -> bytes:
    return b"".join(lines[1:])


def doubled(lines: list[bytes]) -> bytes:
    return b"".join(lines + lines[-1:])


def torn_inside(lines: list[bytes]) -> bytes:
    return lines[0] + lines[1][:5] + b"\n" + lines[2]


@pytest.mark.parametrize("spoil", [without_first, doubled, torn_inside, lambda _: b""])
def test_committed_rounds_that_are_gone_are_missed(tmp_path: Path, spoil: Callable[..., bytes]) -> None:
    made(tmp_path, rounds=3).close()
    path = tmp_path / records.ROUNDS
    path.write_bytes(spoil(path.read_bytes().splitlines(keepends=True)))
    spoilt = path.read_bytes()
    book = Records.reopen(tmp_path)
    with pytest.raises(
        EdgewiseError, match=r"rounds\.jsonl: not the 3 rounds that the checkpoint came after"
    ):
        book.cut(3, HOLDINGS)
    book.close()
    assert path.read_bytes() == spoilt


# ---- the folder ----


def test_other_data_than_at_the_start_is_refused(tmp_path: Path) -> None:
    made(tmp_path).close()
    book = Records.reopen(tmp_path)
    with pytest.raises(EdgewiseError, match=r"partition\.csv: devices held other examples"):
        book.cut(0, HOLDINGS.replace("3", "4"))
    (tmp_path / records.PARTITION).unlink()
    book.cut(0, HOLDINGS)
    book.close()
    assert (tmp_path / records.PARTITION).read_text() == HOLDINGS


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    assert not records.holds_run(tmp_path / "a")
    made(tmp_path / "a").close()
    assert records.holds_run(tmp_path / "a")
    with pytest.raises(EdgewiseError, match="holds a run already; give --resume, or another --out"):
        made(tmp_path / "a")


@pytest.mark.parametrize("left", [records.CHECKPOINT, records.SUMMARY, records.MODEL])
def test_remains_of_a_run_are_not_taken_for_a_new_one(tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch()
    with pytest.raises(EdgewiseError, match=f"holds {left} of a run without config.toml; give another --out"):
        made(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [left]


def test_a_start_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / records.PARTITION).write_text("old")
    (tmp_path / records.ROUNDS).write_text("old")
    made(tmp_path, rounds=1).close()
    assert records.rows(tmp_path) == [row(1)]
    assert (tmp_path / records.PARTITION).read_text() == HOLDINGS


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    book = made(tmp_path)
    with pytest.raises(EdgewiseError, match="another process goes on with this run"):
        Records.reopen(tmp_path)
    book.close()
    Records.reopen(tmp_path).close()


def test_a_failed_start_lets_go_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".config.toml.part").symlink_to("/dev/full")
    with pytest.raises(EdgewiseError, match=r"config\.toml: cannot be written \(No space left on device\)"):
        made(tmp_path)
    assert not records.holds_run(tmp_path)
    made(tmp_path).close()


# ---- checkpoints ----


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    given = checkpoint(7)
    given.tensors["half"] = torch.randn(5).to(torch.bfloat16)
    given.tensors["wide"] = torch.tensor([0.1, -0.0, float("inf")], dtype=torch.float64)
    given.save(tmp_path / "c")
    found = Checkpoint.load(tmp_path / "c")
    assert found.note == given.note
    assert found.tensors.keys() == given.tensors.keys()
    for name, tensor in given.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name].view(torch.uint8), tensor.view(torch.uint8))


def test_a_checkpoint_is_committed_with_its_lines(tmp_path: Path) -> None:
    book = made(tmp_path, rounds=2)
    book.checkpoint(checkpoint(2))
    book.close()
    with safe_open(tmp_path / records.CHECKPOINT, framework="pt") as file:
        assert json.loads(file.metadata()["note"])["round"] == 2
    assert len(records.rows(tmp_path)) == 2


def every_bit(raw: bytes) -> list[bytes]:
    """The file with one bit flipped: in every byte of its header, and here and there in the tensors."""
    end = 8 + int.from_bytes(raw[:8], "little")
    places = [*range(end), *range(end, len(raw), 97)]
    return [raw[:k] + bytes([raw[k] ^ 1 << k % 8]) + raw[k + 1 :] for k in places]


def every_length(raw: bytes) -> list[bytes]:
    return [raw[:k] for k in range(0, len(raw), 31)] + [raw + b"\x00", raw * 2]


@pytest.mark.parametrize("spoil", [every_bit, every_length])
def test_a_damaged_checkpoint_is_noticed(tmp_path: Path, spoil: Callable[[bytes], list[bytes]]) -> None:
    path = tmp_path / "c"
    checkpoint(7).save(path)
    raw = path.read_bytes()
    for spoilt in spoil(raw):
        assert spoilt != raw
        path.write_bytes(spoilt)
        with pytest.raises(EdgewiseError, match=r"not a readable|is damaged") as told:
            Checkpoint.load(path)
        assert str(told.value).startswith(f"{path}: ")


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match="not a readable checkpoint"):
        Checkpoint.load(tmp_path)


# ---- summary.json ----

SUMMARY = dict.fromkeys(records.SUMMARISED, 0)


def test_a_summary_is_there_or_not(tmp_path: Path) -> None:
    assert records.summary(tmp_path) is None
    (tmp_path / records.SUMMARY).write_text(json.dumps(SUMMARY))
    assert records.summary(tmp_path) == SUMMARY


CUT = json.dumps(SUMMARY)[:-1].encode()


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"{}", b"\xff", CUT, b'{"accuracy": 1}'])
def test_a_damaged_summary_is_noticed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / records.SUMMARY
    path.write_bytes(content)
    with pytest.raises(EdgewiseError) as told:
        records.summary(tmp_path)
    assert str(told.value).startswith(f"{path}: not ")
    assert str(told.value).endswith("; remove it, and --resume writes it again")
