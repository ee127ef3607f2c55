"""Runs' folders as a run would write them, without running: quick, and wrong in whatever way is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgewise.config import Config

CLASSES = 10


def row(number: int, accuracy: float | None = None, **changes: Any) -> dict[str, Any]:
    """A line of rounds.jsonl, of 4 devices that sent 1,000 bytes each and received 3,000."""
    line = {"round": number, "step": 5 * number, "examples_seen": 160 * number, "lr": 0.1, "train_loss": 0.5}
    line |= {"bytes_up": 4000, "bytes_down": 12000, "bytes_up_each": 1000, "bytes_down_each": 3000}
    line |= {"seconds": 0.25}
    if accuracy is not None:
        line |= {"accuracy": accuracy, "loss": 1.5, "per_class": [accuracy] * CLASSES}
    line |= changes
    return {name: value for name, value in line.items() if value is not None}


def write_run(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """A run's folder with these rounds, and settings that differ from those of 4 devices and 20 steps."""
    flat = {"devices": 4, "algorithm": "fedavg", "sync_every": 5, "steps": 20, "lr": 0.1, **settings}
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(Config.of(flat).toml())
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    held = "".join(f"{device},100{',10' * CLASSES}\n" for device in range(flat["devices"]))
    heads = "".join(f",{label}" for label in range(CLASSES))
    (folder / "partition.csv").write_text(f"device,examples{heads}\n{held}")
    return folder


def learning(*accuracies: float | None, **changes: Any) -> list[dict[str, Any]]:
    """Rounds with these accuracies."""
    return [row(number, accuracy, **changes) for number, accuracy in enumerate(accuracies, 1)]
