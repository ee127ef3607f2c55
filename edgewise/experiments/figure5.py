"""Figure 5 of the reference: federated averaging forgets more the less often devices of two classes exchange.

Group norm, ten devices, an exchange every 10 and every 150 local steps. Where the reference says nothing its
section on non-IID data is taken to hold on: rate 0.1, momentum 0.9, weight decay 5e-4, a constant rate.
Momentum starts from rest in every round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.config import Config
from edgewise.experiments.base import Figure, Plan
from edgewise.experiments.claims import Claim
from edgewise.experiments.page import Curves

Flat = Mapping[str, Any]
STEPS = (10, 150)  # K
OWN = 0.22  # two classes of ten, and two points: a data set has not quite as many images of each
PARTITIONS = {"skewed": "labels:2", "iid": "iid"}
BASE: Flat = {"devices": 10, "norm": "group", "algorithm": "fedavg", "momentum": 0.9, "weight_decay": 5e-4}
# Where a step has 8 images in place of 32 the rate is a quarter: thousands of small steps in place of
# hundreds of large ones, since a round is 150 of them. laptop: 240,000 images a run, six minutes of a core.
SCALES: dict[str, Flat] = {
    "demo": {"data": "digits", "width": 6, "augment": "crop:1", "batch": 8, "lr": 0.025, "steps": 600},
    "laptop": {"data": "cifar10", "width": 8, "batch": 8, "lr": 0.025, "steps": 3000},
    "paper": {"data": "cifar10", "width": 64, "batch": 32, "lr": 0.1, "epochs": 100, "precision": "bf16"},
}
EVERY = {"demo": 50, "laptop": 150, "paper": 150}  # steps between evaluations, but never within a round


def runs(scale: str) -> dict[str, Config]:
    """The runs of the figure, by name: PARTITION-K."""
    return {
        f"{name}-{every}": Config.of(
            {
                **BASE,
                **SCALES[scale],
                "partition": partition,
                "sync_every": every,
                "eval_every": max(1, EVERY[scale] // every),
            }
        )
        for name, partition in PARTITIONS.items()
        for every in STEPS
    }


def notes(plan: Plan) -> str:
    """What a reader has to know of these runs besides."""
    config = next(iter(plan.runs.values()))
    lr = f"{config.algorithm.sgd.lr:g}"
    return (
        f"K is the local steps between two exchanges. A device takes {config.batch} images a step at the "
        f"constant rate {lr} (the reference: 32 images; it gives no rate here, 0.1 in its section before); "
        "momentum starts from rest in every round. A model that knows only two classes has 20 %."
    )


FIGURE = Figure(
    title="Federated averaging with group norm: ResNet18, 10 devices",
    source="Figure 5 (figure 3 in the text), section 'Federated Learning',",
    statement=(
        "On devices of two classes averaging forgets: an exchange every 10 steps leaves nearly half the "
        "accuracy, one every 150 leaves devices that know their own data only."
    ),
    scales=tuple(SCALES),
    runs=runs,
    page=Curves(
        labels={
            "iid-10": "IID, K = 10",
            "iid-150": "IID, K = 150",
            "skewed-10": "2 classes a device, K = 10",
            "skewed-150": "2 classes a device, K = 150",
        },
        expected={
            "iid-10": Claim("the level"),
            "iid-150": Claim("the level"),
            "skewed-10": Claim("nearly 50 %", 0.45, 0.55),
            "skewed-150": Claim("devices know their own data only", high=OWN),
        },
        notes=notes,
    ),
    diverging=True,
)
