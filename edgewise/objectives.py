"""What a model is trained for: the losses of a batch, and how right each answer is.

An objective is called as local training calls it, `objective(model, x, y)`; where a model is evaluated it is
asked for losses, without what only training adds (label smoothing), and for scores. What is reported as
accuracy is the mean score, 0..1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.data.dataset import Dataset
from edgewise.errors import EdgewiseError


class Objective(Protocol):
    def __call__(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        """One loss per example, (N,), of the model's answers to x (N, C, H, W)."""
        ...

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """One loss per example, (N,), of outputs (N, outputs) held to y, as evaluation reports it."""
        ...

    def scores(self, outputs: Tensor, y: Tensor) -> Tensor:
        """How right each answer is, (N,) in 0..1; their mean is reported as accuracy."""
        ...

    def outputs(self, dataset: Dataset) -> int:
        """How many numbers the model gives for an example; EdgewiseError if the data does not suit."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Classification: one class an example. Score: whether the largest logit is the right one's.

    `smoothing`: the share of each label that training spreads over all classes evenly, the right one among
    them (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567). In training y is (N,) classes, or (N, C)
    shares of them.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise EdgewiseError(
                f"objective: cross-entropy:{self.smoothing:g}; legal: a label smoothing from 0, below 1"
            )

    def __call__(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="none", label_smoothing=self.smoothing)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="none")

    def scores(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs.argmax(1) == y).float()

    def outputs(self, dataset: Dataset) -> int:
        if dataset.train.targets is not None:
            raise EdgewiseError(
                "objective: cross-entropy learns labels, and the data has targets; "
                "give squared-error or binary-cross-entropy, or data without targets"
            )
        return len(dataset.classes)


@dataclass(frozen=True)
class SquaredError:
    """Regression: the mean squared error over an example's targets.

    Score: whether all of an example's answers lie within `tolerance` of its targets.
    """

    tolerance: float = 0.5

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and math.isfinite(self.tolerance)):
            raise EdgewiseError(f"objective: squared-error:{self.tolerance:g}; legal: a tolerance above 0")

    def __call__(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        return self.losses(model(x), y)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y.view_as(outputs)).square().mean(1)

    def scores(self, outputs: Tensor, y: Tensor) -> Tensor:
        return ((outputs - y.view_as(outputs)).abs() <= self.tolerance).all(1).float()

    def outputs(self, dataset: Dataset) -> int:
        return _targets(dataset, "squared-error").shape[1]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Multi-label: each target is yes (1) or no (0) by itself.

    Score: labels both predicted and true, of those that are either (the Jaccard index; 1 where there are
    none): Godbole and Sarawagi 2004, "Discriminative Methods for Multi-labeled Classification".
    """

    def __call__(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        return self.losses(model(x), y)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        wanted = y.view_as(outputs).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").mean(1)

    def scores(self, outputs: Tensor, y: Tensor) -> Tensor:
        predicted, true = outputs > 0, y.view_as(outputs) > 0.5
        either = (predicted | true).sum(1)
        return torch.where(either > 0, (predicted & true).sum(1) / either.clamp(min=1), 1.0).float()

    def outputs(self, dataset: Dataset) -> int:
        targets = _targets(dataset, "binary-cross-entropy")
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise EdgewiseError("objective: binary-cross-entropy takes targets that are 0 or 1")
        return targets.shape[1]


def _targets(dataset: Dataset, name: str) -> Tensor:
    """The training targets as (N, T)."""
    targets = dataset.train.targets
    if targets is None:
        raise EdgewiseError(f"objective: {name} needs targets; give Dataset.of(..., targets=(train, test))")
    return targets.view(len(targets), -1)


OBJECTIVES: dict[str, type[Any]] = {
    "cross-entropy": CrossEntropy,
    "squared-error": SquaredError,
    "binary-cross-entropy": BinaryCrossEntropy,
}
