"""What a fleet's run must have come to: its journal's rounds, played by devices in one process.

A device that was asked and is not among those whose updates count stays where it was, in its data and in what
its codec owes. It is run in the folder of a `Scene`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewise.assemble import Parts, assemble
from edgewise.config import Config, read_toml
from edgewise.device import Reply, Task
from edgewise.engines.inline import Inline
from edgewise.memories import Memories
from edgewise.rounds import drive


class Journaled(Inline):
    """`rounds`: by number, who was asked, and whose updates count."""

    def __init__(self, parts: Parts, folder: Path, rounds: dict[int, tuple[list[int], set[int]]]) -> None:
        super().__init__(parts.devices, parts.model, parts.work, Memories(None, folder / "memories"))
        self.rounds = rounds

    def choose(self, round: int, ranking: Sequence[int], size: int) -> Sequence[int]:
        return self.rounds[round][0]

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        return super().ask(task, [device for device in cohort if device in self.rounds[task.round][1]])


def journaled(path: Path) -> dict[int, tuple[list[int], set[int]]]:
    with closing(sqlite3.connect(path)) as database:
        rounds: dict[int, tuple[list[int], set[int]]] = {
            number: (json.loads(asked), set())
            for number, asked in database.execute("SELECT number, asked FROM rounds")
        }
        for number, device in database.execute("SELECT round, device FROM updates"):
            rounds[number][1].add(device)
    return rounds


def replay() -> None:
    """Print the digest."""
    config = Config.of(read_toml(Path("home/run/config.toml")))
    config = replace(config, engine="inline", fused="off")
    rounds, folder = journaled(Path("home/journal.sqlite")), Path("replayed")

    def reach(parts: Parts, note: Any) -> Journaled:
        return Journaled(parts, folder, rounds)

    for _ in drive(config, folder, lambda config: assemble(config), reach, False):
        pass
    print(json.loads((folder / "summary.json").read_text())["model_digest"])
