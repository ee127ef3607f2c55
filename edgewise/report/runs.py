"""Runs read back from their folders, finished or not: every evaluation with what it had cost by then."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise import records
from edgewise.cohorts import cohort
from edgewise.config import Config, read_toml
from edgewise.errors import EdgewiseError
from edgewise.network import Network
from edgewise.report.watched import Watched
from edgewise.rounds import total_rounds

DEEPEST = 3  # levels below a folder that is given: out/figure2-demo/runs/NAME from out
NOT_A_RUN = f"holds no run ({records.CONFIG} and {records.ROUNDS}), nor do the folders in it"


@dataclass(frozen=True)
class Point:
    """A run after some round. All but `train_loss` count from the start.

    Bytes are those of all devices together, `seconds` those of the machine that simulated, `network_seconds`
    those of the described network, if there is one. `accuracy` and `loss` are None where not evaluated.
    """

    round: int
    step: int
    examples_seen: int
    train_loss: float
    bytes_up: int
    bytes_down: int
    seconds: float
    network_seconds: float | None
    accuracy: float | None
    loss: float | None
    classes: int | None
    watched: Watched

    @property
    def reached(self) -> float:
        """The accuracy of a point that was evaluated."""
        assert self.accuracy is not None
        return self.accuracy


@dataclass(frozen=True)
class Run:
    """A run as far as it has come: `points` are its evaluations, `end` its last round, None before one.

    `total` rounds are planned; None where the folder does not tell.
    """

    name: str
    folder: Path
    config: Config
    points: tuple[Point, ...]
    end: Point | None
    total: int | None

    def reach(self, accuracy: float) -> Point | None:
        """The first evaluation that came up to an accuracy."""
        return next((point for point in self.points if point.reached >= accuracy), None)

    @property
    def best(self) -> float | None:
        return max((point.reached for point in self.points), default=None)


def read(folders: Sequence[Path], network: Network | None = None) -> list[Run]:
    """The runs in these folders and in folders in them, each once; EdgewiseError if one cannot be read."""
    found: dict[Path, Path] = {}
    for folder in folders:
        for path in _find(folder):
            found.setdefault(path.resolve(), path)
    names = _names(list(found))
    return [_read(path, name, network) for path, name in zip(found.values(), names, strict=True)]


def _find(folder: Path) -> list[Path]:
    if _is_run(folder):
        return [folder]
    if not folder.is_dir():
        raise EdgewiseError(f"{folder}: no such folder")
    patterns = ["*/" * depth + records.CONFIG for depth in range(1, DEEPEST + 1)]
    inside = {path.parent for pattern in patterns for path in folder.glob(pattern)}
    runs = sorted(path for path in inside if _is_run(path))
    if not runs:
        raise EdgewiseError(f"{folder}: {NOT_A_RUN}")
    return runs


def _is_run(folder: Path) -> bool:
    return (folder / records.CONFIG).is_file() and (folder / records.ROUNDS).is_file()


def _names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    longest = max((len(folder.parts) for folder in folders), default=1)
    for length in range(1, longest + 1):
        names = [Path(*folder.parts[-length:]).as_posix() for folder in folders]
        if len(set(names)) == len(names):
            break
    return [os.fsencode(name).decode("utf-8", "replace") for name in names]


def _read(folder: Path, name: str, network: Network | None) -> Run:
    path = folder / records.CONFIG
    flat = read_toml(path)
    try:
        config = Config.of(flat)
    except EdgewiseError as error:
        raise EdgewiseError(f"{path}: {error}") from None
    end, points = None, []
    for point in _trace(folder / records.ROUNDS, config, network):
        end = point
        if point.accuracy is not None:
            points.append(point)
    return Run(name, folder, config, tuple(points), end, _total(folder))


def _total(folder: Path) -> int | None:
    try:
        return total_rounds(folder)
    except (OSError, ValueError, KeyError, EdgewiseError):
        return None  # without partition.csv, or with a damaged one, nothing but this is missing


def _trace(path: Path, config: Config, network: Network | None) -> Iterator[Point]:
    """Every round with what the run had cost by then."""
    step, up, down, seconds = 0, 0, 0, 0.0
    elapsed = 0.0 if network else None
    for number, row in _rows(path):
        try:
            if network and elapsed is not None:
                elapsed += _round_seconds(row, row["step"] - step, config, network)
            step, up, down = row["step"], up + row["bytes_up"], down + row["bytes_down"]
            seconds += row["seconds"]
            accuracy, loss = (None if row.get(k) is None else float(row[k]) for k in ("accuracy", "loss"))
            classes = None if row.get("per_class") is None else len(row["per_class"])
            loss_here, seen = float(row["train_loss"]), int(row["examples_seen"])
            watched = Watched.of(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, number, error) from None
        costs = (number, step, seen, loss_here, up, down, seconds, elapsed)
        yield Point(*costs, accuracy, loss, classes, watched)


def _round_seconds(row: dict[str, Any], steps: int, config: Config, network: Network) -> float:
    up, down = (_each(row, direction, config.cohort_size) for direction in ("up", "down"))
    return network.round_seconds(cohort(config, row["round"]), up, down, steps)


def _each(row: dict[str, Any], direction: str, devices: int) -> float | list[int]:
    """The bytes of each device of the cohort: one number if they are all the same."""
    each = row.get(f"bytes_{direction}_each", row[f"bytes_{direction}"] / devices)
    if isinstance(each, list) and len(each) != devices:
        raise ValueError(f"{len(each)} devices where {devices} were asked")
    return each


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of rounds.jsonl, by number; a last line that is still being written is left out."""
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["round"] != number:
                raise ValueError(f"round {row['round']} where {number} was expected")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, number, error) from None
        yield number, row


def _damaged(path: Path, number: int, error: Exception) -> EdgewiseError:
    why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return EdgewiseError(f"{path}: line {number} is damaged ({why})")
