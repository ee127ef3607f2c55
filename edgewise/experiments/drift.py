"""Federated averaging where devices hold two classes each: where it forgets, and what mends it.

The reference's last section, and on from there: plain federated averaging, what papers add to it and the
recipe `steady`, over K and over how the pairs of classes lie: disjoint (0 and 1, 2 and 3, ...), overlapping
(0 and 1, 1 and 2, ...) or none at all (IID).

Scales: `screen` is where everything was chosen, on images that are no test images, with a net of ten layers
on images of half the size; `laptop` and `paper` hold what was chosen against federated averaging.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgewise.config import Config
from edgewise.experiments.base import Figure
from edgewise.experiments.methods import IID, Cell, Methods
from edgewise.recipes import RECIPES

Flat = Mapping[str, Any]

BASE: Flat = {"devices": 10, "schedule": "cosine", "norm": "group", "algorithm": "fedavg"}
SCALES: dict[str, Flat] = {
    "demo": {"data": "digits", "width": 6, "batch": 8, "augment": "crop:1", "steps": 1000},
    "screen": {
        "data": "edgewise.experiments.screen:data",
        "model": "edgewise.experiments.screen:net",
        "width": 8,
        "batch": 8,
        "steps": 3600,
    },
    "laptop": {"data": "cifar10", "width": 8, "batch": 8, "steps": 3150},
    "paper": {"data": "cifar10", "width": 64, "batch": 32, "epochs": 100},
}
EVERY = {"demo": 50, "screen": 150, "laptop": 150, "paper": 150}  # K where nothing else is said
STEPS = (150, 50, 500, 10, 1)  # K; first what a plan that is cut off should have
PAIRINGS = {"disjoint": "labels:2", "overlapping": "labels:2:overlap", "iid": "iid"}
PLAIN, RECIPE = "fedavg", "steady"
EVALUATIONS = 20  # a run

# The rates were tuned at the screen, over the same values for plain averaging on IID data and the recipe.
METHODS: dict[str, Flat] = {
    "fedavg": {"lr": 0.02},
    "steady": {"lr": 0.02, "algorithm": "steady"},
}
# The screen alone, at its K: the recipe without each of its parts, ...
LESS: dict[str, Flat] = {
    "steady-without-fedlmd": {**RECIPES[RECIPE], "algorithm": "fedavg"},
    "steady-without-group-ws": {"algorithm": "steady", "norm": "group"},
    "steady-without-etf": {"algorithm": "steady", "head": "linear"},
    "steady-without-fedexp": {"algorithm": "steady", "aggregate": "mean"},
}
# ... what else both were tuned over, momentum at the rates that go equally far, ...
TUNED: dict[str, Flat] = {
    "momentum-0": {"momentum": 0.0, "lr": 0.2},
    "momentum-0.5": {"momentum": 0.5, "lr": 0.1},
    "decay-0": {"weight_decay": 0.0},
    "decay-0.005": {"weight_decay": 5e-3},
}
# ... and one thing at a time added to plain averaging, with its default numbers.
ALONE = (
    "fedlmd",
    "fedntd",
    "scaffold",
    "feddyn",
    "fedprox",
    "fedcm",
    "fedacg",
    "fedlc",
    "fedrs",
    "fedadam",
    "sam",
)
SINGLES: dict[str, Flat] = {
    **{name: {"algorithm": name} for name in ALONE},
    "server-momentum": {"server_momentum": 0.5},
    "fedexp": {"aggregate": "fedexp"},
    "group-ws": {"norm": "group-ws"},
    "etf": {"head": "etf"},
}


def settings(method: str) -> Flat:
    """What a method of any of the tables sets; "steady+decay-0" is one with a setting of `TUNED`."""
    name, _, tuned = method.partition("+")
    found = METHODS.get(name) or {"lr": METHODS[PLAIN]["lr"], **(LESS.get(name) or SINGLES[name])}
    return {**found, **(TUNED[tuned] if tuned else {})}


def config(scale: str, method: str, every: int, pairing: str, seed: int) -> Config:
    """One run. `every`: K."""
    own = settings(method)
    flat = {**BASE, **SCALES[scale], **own, "partition": PAIRINGS[pairing]}
    if "epochs" not in flat:
        flat["eval_every"] = max(1, math.ceil(flat["steps"] / every) // EVALUATIONS)
    if own.get("algorithm") == RECIPE and "norm" not in own:
        flat.pop("norm")  # the recipe has its own
    return Config.of({**flat, "sync_every": every, "seed": seed})


def cells(scale: str) -> dict[tuple[str, int, str], int]:
    """Seeds by method, K and pairing."""
    every = EVERY[scale]
    if scale == "screen":
        found = {(m, k, pairing): 1 for k in STEPS for pairing in PAIRINGS for m in (PLAIN, RECIPE)}
        found |= {(method, every, "disjoint"): 1 for method in LESS}
        for tuned in TUNED:
            found |= {(f"{PLAIN}+{tuned}", every, IID): 1, (f"{RECIPE}+{tuned}", every, "disjoint"): 1}
        return found | {(method, every, "disjoint"): 1 for method in SINGLES}
    seeds = 1 if scale == "demo" else 3
    compared = ((RECIPE, "disjoint"), (PLAIN, "iid"), (RECIPE, "iid"))
    found = {(method, every, pairing): seeds for method, pairing in compared}
    return found | {(PLAIN, every, "disjoint"): 1}  # whose failure is beyond doubt


def runs(scale: str) -> dict[str, Config]:
    """The runs by name, seed by seed from 0, so that a plan that is cut off has whole seeds."""
    found = cells(scale)
    return {
        f"{method}-{every}-{pairing}-seed{seed}": config(scale, method, every, pairing, seed)
        for seed in range(max(found.values()))
        for (method, every, pairing), seeds in found.items()
        if seed < seeds
    }


def cell(name: str) -> Cell:
    """What the run of this name is one of."""
    method, every, pairing, _ = name.rsplit("-", 3)
    return Cell(method, int(every), pairing)


FIGURE = Figure(
    title="Federated averaging on devices of two classes each",
    source="The reference's last section",
    statement=(
        "The reference saw averaging fall to nearly half the accuracy where devices took ten steps between "
        "exchanges, and learn only their own data where they took 150."
    ),
    scales=tuple(SCALES),
    runs=runs,
    page=Methods(
        cell=cell,
        plain=PLAIN,
        every=lambda scale: EVERY[scale],
        shown=(
            (PLAIN, "iid", "fedavg, IID data"),
            (RECIPE, "iid", "steady, IID data"),
            (RECIPE, "disjoint", "steady, 2 classes a device"),
            (PLAIN, "disjoint", "fedavg, 2 classes a device"),
        ),
    ),
)
