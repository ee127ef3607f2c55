"""How good the shared model is: over all test examples, per class, and for each device's mix of classes.

Accuracy is the mean score of the objective (`objectives.py`): for classification, the share that is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise.data.dataset import Split
from edgewise.data.feed import Feed
from edgewise.objectives import CrossEntropy, Objective
from edgewise.vector import FlatModel

BATCH = 256
CLASSIFY = CrossEntropy()


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` and `per_class` (recall of each class; None for a class without test examples) in 0..1."""

    accuracy: float
    loss: float
    per_class: tuple[float | None, ...]
    worst: float | None = None  # the lowest accuracy of a device, where devices evaluate apart


def evaluate(
    model: FlatModel, split: Split, feed: Feed, classes: int, objective: Objective = CLASSIFY
) -> Evaluation:
    """Evaluate the state that `model` holds, in eval mode, on every example of `split`."""
    right, seen, loss = count(model, split, feed, classes, objective)
    recall = tuple(r / s if s else None for r, s in zip(right, seen, strict=True))
    return Evaluation(sum(right) / sum(seen), loss / len(split), recall)


@torch.no_grad()
def count(
    model: FlatModel, split: Split, feed: Feed, classes: int, objective: Objective = CLASSIFY
) -> tuple[list[float], list[int], float]:
    """The scores of each class's examples summed, how many there are, and the sum of their losses."""
    model.module.eval()
    right, seen = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.int64)
    loss = 0.0
    for start in range(0, len(split), BATCH):
        labels = split.labels[start : start + BATCH]
        truth = split.truth[start : start + BATCH]
        outputs = model(feed.plain(split.images[start : start + BATCH]))
        loss += float(objective.losses(outputs, truth).sum())
        seen += torch.bincount(labels, minlength=classes).cpu()
        scores = objective.scores(outputs, truth).double()
        right += torch.bincount(labels, scores, minlength=classes).cpu()
    return right.tolist(), seen.tolist(), loss


def per_device(per_class: tuple[float | None, ...], counts: Tensor) -> list[float | None]:
    """The accuracy that each device would see: recall weighted by its mix of classes, `counts` (D, classes).

    One model for all, so nothing needs to run again: a device with classes 0 and 1 in equal parts sees the
    mean of their recalls. Classes without test examples are left out; None for a device that has no others.
    """
    known = torch.tensor([value is not None for value in per_class])
    recall = torch.tensor([value or 0.0 for value in per_class])
    weights = counts.float() * known
    seen = weights.sum(1)
    shares = ((weights @ recall) / seen.clamp(min=1)).tolist()
    return [share if count else None for share, count in zip(shares, seen.tolist(), strict=True)]
