"""How good the model is: over all test examples, per class, and for each device's mix of classes.

Accuracy is the mean score of the objective (`objectives.py`): for classification, the share that is right.
Where a part of the model stays on devices, each has its own: then it is the mean over the devices (`Apart`).
"""

from __future__ import annotations

from collections.abc import Iterator
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


def count(
    model: FlatModel, split: Split, feed: Feed, classes: int, objective: Objective = CLASSIFY
) -> tuple[list[float], list[int], float]:
    """The scores of each class's examples summed, how many there are, and the sum of their losses."""
    right = torch.zeros(classes, dtype=torch.float64, device=split.labels.device)
    seen, loss = torch.zeros_like(right, dtype=torch.int64), right.new_zeros(())
    for labels, scores, losses in _answers(model, split, feed, objective):  # nothing is read on the way
        loss += losses.sum()
        seen.index_add_(0, labels, torch.ones_like(labels))
        right.index_add_(0, labels, scores)
    return right.tolist(), seen.tolist(), float(loss)


@torch.no_grad()
def _answers(
    model: FlatModel, split: Split, feed: Feed, objective: Objective
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Labels, scores in float64 and losses of the examples, each (N,), a batch at a time."""
    model.module.eval()
    for start in range(0, len(split), BATCH):
        truth = split.truth[start : start + BATCH]
        outputs = model(feed.plain(split.images[start : start + BATCH]))
        losses, scores = objective.losses(outputs, truth), objective.scores(outputs, truth).double()
        yield split.labels[start : start + BATCH], scores, losses


class Apart:
    """Devices with a model each, evaluated one after another.

    A device is tried on the test examples (`split`) of the classes that it holds, and its accuracy is its
    recall weighted by its mix of them, `held` (D, classes): what it would see. Together: the mean over the
    devices, the worst of them, and for a class the mean weighted by how many of its examples each holds.
    Classes without test examples are left out, and so are devices that hold no others.
    """

    def __init__(self, split: Split, held: Tensor) -> None:
        self.split = split
        seen = torch.bincount(split.labels.cpu(), minlength=held.shape[1])
        self.seen = seen.double()
        self.mix = held.double() * (seen > 0)  # (D, classes)
        self.recall, self.losses = torch.zeros_like(self.mix), torch.zeros_like(self.mix)

    def add(self, device: int, model: FlatModel, feed: Feed, objective: Objective = CLASSIFY) -> None:
        """Try what `model` holds, which is the device's."""
        own = (self.mix[device] > 0).to(self.split.labels.device)
        places = own[self.split.labels].nonzero().flatten()
        if not len(places):
            return
        split = self.split.pick(places)
        for labels, scores, losses in _answers(model, split, feed, objective):
            classes = len(self.seen)
            self.recall[device] += torch.bincount(labels, scores, minlength=classes).cpu()
            self.losses[device] += torch.bincount(labels, losses.double(), minlength=classes).cpu()

    def value(self) -> Evaluation | None:
        """All devices have been tried; None if there was nothing to try any of them on."""
        mix, each = self.mix, self.seen.clamp(min=1)
        weights = mix / mix.sum(1, keepdim=True).clamp(min=1)
        tried = mix.sum(1) > 0
        if not bool(tried.any()):
            return None
        accuracies = (weights * self.recall / each).sum(1)[tried]
        losses = (weights * self.losses / each).sum(1)[tried]
        holders = mix.sum(0)
        recall = (mix * self.recall / each).sum(0) / holders.clamp(min=1)
        known = zip(recall.tolist(), holders.tolist(), strict=True)
        per_class = tuple(value if count else None for value, count in known)
        return Evaluation(float(accuracies.mean()), float(losses.mean()), per_class, float(accuracies.min()))


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
