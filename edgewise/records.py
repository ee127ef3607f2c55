"""What a run writes down: config.toml, rounds.jsonl, checkpoint.safetensors, summary.json, model.safetensors.

Or diverged.json in place of the last two.

Files appear whole or not at all (`files.py`). A checkpoint is one file, so one rename
commits a round; resuming cuts rounds.jsonl back to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edgewise.errors import EdgewiseError
from edgewise.files import one_line
from edgewise.files import write as write

CHECKPOINT = "checkpoint.safetensors"
ROUNDS = "rounds.jsonl"
SUMMARY = "summary.json"
DIVERGED = "diverged.json"
CONFIG = "config.toml"
MODEL = "model.safetensors"
PARTITION = "partition.csv"
MEMORIES = "memories"  # a folder: what devices' codecs remember

# What scripts may rely on in summary.json.
SUMMARISED = {
    *("accuracy", "best_accuracy", "last10_accuracy", "per_class", "steps", "rounds", "examples_seen"),
    *("bytes_up", "bytes_down", "seconds", "model_digest"),
}
REMOVE = "remove it, and --resume writes it again"


def holds_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    with one_line(folder):
        return (folder / CONFIG).exists()


def check_free(folder: Path) -> None:
    """EdgewiseError if the folder holds a run, or what is left of one."""
    with one_line(folder):
        found = [name for name in (CONFIG, CHECKPOINT, MODEL, SUMMARY) if (folder / name).exists()]
    if CONFIG in found:
        raise EdgewiseError(f"{folder}: holds a run already; give --resume, or another --out")
    if found:
        raise EdgewiseError(f"{folder}: holds {found[0]} of a run without {CONFIG}; give another --out")


@dataclass(frozen=True)
class Checkpoint:
    """A run after `note["round"]` rounds: named tensors, and everything else as a JSON-able dict."""

    tensors: dict[str, Tensor]
    note: dict[str, Any]

    def save(self, path: Path, lasting: bool = True) -> None:
        """Atomically; `lasting` as for `files.write`."""
        note = json.dumps(self.note)
        metadata = {"note": note, "sha256": _sha256(note, self.tensors)}
        write(
            path,
            save({name: tensor.cpu() for name, tensor in self.tensors.items()}, metadata=metadata),
            lasting=lasting,
        )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """EdgewiseError if the file is not a whole, unchanged checkpoint."""
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
            note = json.loads(metadata["note"])
            whole = metadata["sha256"] == _sha256(metadata["note"], tensors)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise EdgewiseError(f"{path}: not a readable checkpoint ({error})") from None
        if not whole:
            raise EdgewiseError(f"{path}: the checkpoint is damaged (its checksum does not agree)")
        return cls(tensors, note)


def _sha256(note: str, tensors: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        content.update(name.encode())
        values = tensors[name].detach().cpu().contiguous().view(-1)  # one number, too, is a row
        content.update(values.view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


class Records:
    """A run's folder, with no other process in it until `close`. Made by `create` or `reopen`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rounds: IO[bytes] | None = None
        with one_line(folder):
            self._lock = os.open(folder, os.O_RDONLY)
        try:
            # Held by the open folder itself: the system lets go of it however the process ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise EdgewiseError(f"{folder}: another process goes on with this run; wait or stop it") from None
        except OSError:
            pass  # a file system without locks

    @classmethod
    def create(cls, folder: Path, config: str, holdings: str) -> Records:
        """A new folder for a run; EdgewiseError if it holds one already or cannot be written."""
        with one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
        records = cls(folder)
        try:
            check_free(folder)
            write(folder / PARTITION, holdings)
            write(folder / ROUNDS, "")
            write(folder / CONFIG, config)  # last: with it the folder holds a run
            records._open()
        except EdgewiseError:
            records.close()
            raise
        return records

    @classmethod
    def reopen(cls, folder: Path) -> Records:
        """The folder of a run that was started before; `cut` comes before the first `round`."""
        return cls(folder)

    def cut(self, round: int, holdings: str) -> None:
        """Go on after `round`: what rounds.jsonl holds beyond it was not committed and is cut off.

        EdgewiseError if it lacks a round before, or if the data is dealt in another way than at the start.
        """
        path, dealt = self.folder / ROUNDS, self.folder / PARTITION
        with one_line(path):
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            changed = dealt.exists() and dealt.read_bytes() != holdings.encode()
        if changed:
            raise EdgewiseError(f"{dealt}: devices held other examples when the run began; give it that data")
        kept = [line for line in lines if _number(line) <= round]
        if [_number(line) for line in kept] != list(range(1, round + 1)):
            raise EdgewiseError(f"{path}: not the {round} rounds that the checkpoint came after; start anew")
        write(dealt, holdings)
        write(path, b"".join(kept))
        with one_line(self.folder / DIVERGED):
            (self.folder / DIVERGED).unlink(missing_ok=True)
        self._open()

    def _open(self) -> None:
        path = self.folder / ROUNDS
        with one_line(path):
            # Unbuffered: a line that finds no space is not tried again, and fails again, on closing.
            self._rounds = path.open("ab", buffering=0)

    def round(self, row: Mapping[str, Any]) -> None:
        """Append one line to rounds.jsonl."""
        assert self._rounds is not None
        rest = memoryview(json.dumps(row).encode() + b"\n")
        with one_line(self.folder / ROUNDS):
            while rest:
                rest = rest[self._rounds.write(rest) :]

    def diverged(self, why: str) -> None:
        """Write down that training came to numbers that are not finite, after the rounds in rounds.jsonl."""
        write(self.folder / DIVERGED, json.dumps({"why": why}) + "\n")

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Commit everything up to now. The lines go to the disk first: a checkpoint never outruns them."""
        assert self._rounds is not None
        with one_line(self.folder / ROUNDS):
            os.fsync(self._rounds.fileno())
        checkpoint.save(self.folder / CHECKPOINT)

    def close(self) -> None:
        if self._rounds is not None:
            self._rounds.close()
        os.close(self._lock)


def _number(line: bytes) -> float:
    """The round of a line of rounds.jsonl; infinite for a line that was not written to its end."""
    try:
        return int(json.loads(line)["round"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rounds that a folder holds, in order; a last line still being written is left out."""
    path = folder / ROUNDS
    if not path.exists():
        return []
    return [
        json.loads(line)
        for line in path.read_bytes().splitlines(keepends=True)
        if _number(line) < float("inf")
    ]


def diverged(folder: Path) -> bool:
    """Whether a run ended in numbers that are not finite; resumed, it does so again."""
    return (folder / DIVERGED).exists()


def summary(folder: Path) -> dict[str, Any] | None:
    """A finished run's summary, or None."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(content, dict) and content.keys() >= SUMMARISED
    except (OSError, ValueError) as error:
        raise EdgewiseError(f"{path}: not a readable summary ({error}); {REMOVE}") from None
    if not whole:
        raise EdgewiseError(f"{path}: not the summary of a run; {REMOVE}")
    return dict(content)
