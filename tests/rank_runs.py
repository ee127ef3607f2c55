"""Two ranks for tests: this process and one that it hires, which play one run after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.assemble import assemble
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.engines.torchrun.crew import Crew
from edgewise.engines.torchrun.group import Group, enter, listen
from edgewise.hire import Hired
from edgewise.rounds import Round, over_ranks

SPECKS = f"{__name__}:specks"


@contextmanager
def two_ranks() -> Iterator[Group]:
    """Rank 0 of two."""
    hired, store = Hired(2), listen(2)
    try:
        hired.tell({"size": 2, "port": store.port, "settings": Config(processes="2").flat()})
        group = enter(0, 2, store)
        try:
            yield group
        finally:
            group.close()
    finally:
        hired.close(patient=True)


class Lent(Crew):
    """A crew that stays for the next run."""

    def close(self) -> None:
        pass


def play(group: Group, config: Config, out: Path, *, resume: bool = False) -> Iterator[Round]:
    """`edgewise.run` on ranks that are there already."""
    config = replace(config, engine="torchrun")
    return over_ranks(Lent(group), config, out, assemble, resume, 0.0)


def specks(folder: Path | None = None) -> Dataset:
    return _specks()


def _specks() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) % 6
    return Dataset.of("specks", train=(images[:48], labels[:48]), test=(images[48:], labels[48:]))


def others(folder: Path | None = None) -> Dataset:
    """Where classes are other examples'."""
    dataset = _specks()
    images, labels = dataset.train.images, dataset.train.labels.flip(0)
    return Dataset.of("specks", train=(images, labels), test=(dataset.test.images, dataset.test.labels))


class Tiny(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def tiny(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Tiny(classes)


def linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def config(**settings: Any) -> Config:
    """Four devices with three classes each, in float64; small enough to play many."""
    algorithm = settings.get("algorithm", "fedavg")
    every = 1 if algorithm == "sync-sgd" else 2
    sizes = {"data": SPECKS, "devices": 4, "partition": "labels:3", "model": f"{__name__}:tiny", "batch": 4}
    plain = {
        "algorithm": algorithm,
        "lr": 0.02,
        "momentum": 0.5,
        "sync_every": every,
        "steps": 3 * every,
        "eval_every": 2,
    }
    return Config.of({**sizes, **plain, "precision": "fp64", **settings})
