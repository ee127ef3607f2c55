"""The models and sizes of small.py and peers.py, for environments without edgewise too."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Setup:
    """A case's sizes. `steps`: of a device in a round."""

    shape: Shape = (1, 28, 28)
    devices: int = 1000
    cohort: int = 50
    examples: int = 50
    batch: int = 10
    steps: int = 5


def linear(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def perceptron(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.ReLU(), nn.Linear(64, classes))


def cnn(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions and two linear layers, as benchmarks of federated learning often have."""
    inside = (shape[1] - 4) // 2 * ((shape[2] - 4) // 2)
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * inside, 128), nn.ReLU(), nn.Linear(128, classes)),
    )


def lenet(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5; 62,006 parameters on three channels of 32x32."""
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


CASES = {
    "linear": Setup(),
    "perceptron": Setup(),
    "cnn": Setup((3, 32, 32)),
    "lenet": Setup((3, 32, 32), devices=10, cohort=10, examples=5000, batch=32, steps=10),
}
MODELS = {"linear": linear, "perceptron": perceptron, "cnn": cnn, "lenet": lenet}
