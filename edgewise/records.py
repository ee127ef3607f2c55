"""What a run writes down: config.toml, rounds.jsonl, checkpoint.safetensors, summary.json, model.safetensors.

Files appear whole or not at all (temporary file, fsync, rename). A checkpoint is one file, so one rename
commits a round; resuming cuts rounds.jsonl back to it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edgewise.errors import EdgewiseError

CHECKPOINT = "checkpoint.safetensors"
ROUNDS = "rounds.jsonl"
SUMMARY = "summary.json"
CONFIG = "config.toml"
MODEL = "model.safetensors"
PARTITION = "partition.csv"


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what the file system refuses (no space, no permission) into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise EdgewiseError(f"{path}: cannot be written ({error.strerror or error})") from None


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically and durably."""
    part = path.with_name(f".{path.name}.part")
    with _one_line(path):
        try:
            with part.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """A run after `note["round"]` rounds: named tensors, and everything else as a JSON-able dict."""

    tensors: dict[str, Tensor]
    note: dict[str, Any]

    def save(self, path: Path) -> None:
        note = {"note": json.dumps(self.note), "sha256": _sha256(self.tensors)}
        write(path, save({name: tensor.cpu() for name, tensor in self.tensors.items()}, metadata=note))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """EdgewiseError if the file is not a whole, unchanged checkpoint."""
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
            note = json.loads(metadata["note"])
            whole = metadata["sha256"] == _sha256(tensors)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise EdgewiseError(f"{path}: not a readable checkpoint ({error})") from None
        if not whole:
            raise EdgewiseError(f"{path}: the checkpoint is damaged (its checksum does not agree)")
        return cls(tensors, note)


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode())
        content.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


class Records:
    """A run's folder. `create` and `reopen` make one; `close` when done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rounds: IO[bytes] | None = None

    @classmethod
    def create(cls, folder: Path, config: str) -> Records:
        """A new folder for a run; EdgewiseError if it holds one already or cannot be written."""
        if (folder / CONFIG).exists():
            raise EdgewiseError(f"{folder}: holds a run already; give --resume, or another --out")
        with _one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
        records = cls(folder)
        write(folder / CONFIG, config)
        with _one_line(folder / ROUNDS):
            records._rounds = (folder / ROUNDS).open("wb")
        return records

    @classmethod
    def reopen(cls, folder: Path, round: int) -> Records:
        """Continue after `round`: what rounds.jsonl holds beyond it was not committed and is cut off."""
        records = cls(folder)
        path = folder / ROUNDS
        with _one_line(path):
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            kept = [line for line in lines if _number(line) <= round]
            write(path, b"".join(kept))
            records._rounds = path.open("ab")
        return records

    def round(self, row: Mapping[str, Any]) -> None:
        """Append one line to rounds.jsonl."""
        assert self._rounds is not None
        with _one_line(self.folder / ROUNDS):
            self._rounds.write(json.dumps(row).encode() + b"\n")
            self._rounds.flush()

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Commit everything up to now. The lines go to the disk first: a checkpoint never outruns them."""
        assert self._rounds is not None
        with _one_line(self.folder / ROUNDS):
            os.fsync(self._rounds.fileno())
        checkpoint.save(self.folder / CHECKPOINT)

    def close(self) -> None:
        if self._rounds is not None:
            self._rounds.close()


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


def summary(folder: Path) -> dict[str, Any] | None:
    """A finished run's summary, or None."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EdgewiseError(f"{path}: not a readable summary ({error})") from None
    return content
