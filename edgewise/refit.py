"""The last layer of a trained model fitted anew in closed form, from sums that devices can send.

Accelerating Heterogeneous Federated Learning with Closed-form Classifiers (Fed3R), Fani et al. 2024,
https://arxiv.org/abs/2406.01116

    each device:  X'X and X'Y of its features X (n, d + 1), the last of them 1, and labels Y (n, C), one-hot
    coordinator:  W = (sum X'X + ridge * n * I)^-1 sum X'Y          (the bias is not shrunk)

Sums over devices are sums over their examples, so W is the ridge regression on all data in one place,
whatever the skew. The logits are least-squares scores near 0 and 1: good for the largest, no probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import wire
from edgewise.afterwards import Afterwards, Change, no_fleet
from edgewise.data.dataset import Dataset, Split
from edgewise.data.feed import Feed
from edgewise.errors import EdgewiseError
from edgewise.models.heads import FeatureNorm, ScaledFrame, ScaledLinear, scaled
from edgewise.objectives import CrossEntropy
from edgewise.trained import Trained

BATCH = 256
RIDGE = 1e-3


@dataclass(frozen=True)
class Sums:
    """`gram` (d + 1, d + 1) is X'X, `cross` (d + 1, C) is X'Y, both float64; the last feature is 1."""

    gram: Tensor
    cross: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Sums:
        """Of examples with features (N, d) and labels (N,)."""
        wide = torch.cat([features.double(), features.new_ones(len(features), 1).double()], 1)
        return cls(wide.T @ wide, wide.T @ F.one_hot(labels, classes).double())

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.cross + other.cross)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (C, d) and bias (C,) that minimise the mean squared error + ridge * |weights|^2."""
        examples = self.gram[-1, -1]
        shrink = torch.full((len(self.gram),), ridge * float(examples), dtype=torch.float64)
        shrink[-1] = 0.0
        factor, failed = torch.linalg.cholesky_ex(self.gram + shrink.diag())
        if int(failed):
            raise EdgewiseError(f"refit: the features do not determine the weights; a ridge above {ridge:g}")
        solution = torch.cholesky_solve(self.cross, factor)
        return solution[:-1].T.contiguous(), solution[-1].contiguous()

    def pack(self) -> bytes:
        """As it travels: the upper triangle of the symmetric sum, row by row, then the other one."""
        rows, columns = torch.triu_indices(*self.gram.shape)
        return torch.cat([self.gram[rows, columns], self.cross.flatten()]).numpy().tobytes()

    @classmethod
    def unpack(cls, payload: bytes, features: int, classes: int) -> Sums:
        """EdgewiseError unless the payload is sums of finite numbers of this size."""
        side = features + 1
        half = side * (side + 1) // 2
        if len(payload) != 8 * (half + side * classes):
            raise EdgewiseError(f"refit: {len(payload)} bytes are not the sums of {features} features")
        values = torch.frombuffer(bytearray(payload), dtype=torch.float64)
        if not bool(values.isfinite().all()):
            raise EdgewiseError("refit: the sums are not finite")
        rows, columns = torch.triu_indices(side, side)
        gram = torch.zeros(side, side, dtype=torch.float64)
        gram[rows, columns] = values[:half]
        gram[columns, rows] = values[:half]
        return cls(gram, values[half:].view(side, classes).clone())


@dataclass(frozen=True, kw_only=True)
class Refit(Change):
    """A model whose last layer was fitted anew."""

    ridge: float

    @property
    def text(self) -> str:
        return self.words(f"sums of {self.devices} devices")


def refit(
    run: str | Path, ridge: float = RIDGE, *, out: str | Path | None = None, dataset: Dataset | None = None
) -> Refit:
    """Fit the last layer of a finished run's model to all devices' data, and write it into the folder `out`.

    `out`: else `refit` in the run's folder; it can be exported like a run. `dataset` replaces the one that
    the run's config names. EdgewiseError where the model has no linear last layer of ours, where its devices
    were real ones, or where the folder holds something already.
    """
    if not 0 < ridge < float("inf"):
        raise EdgewiseError(f"refit: a ridge of {ridge:g}; legal: above 0")
    at = Afterwards.read(run, out, dataset, "refit", lambda trained: _checked(freed(trained)))
    module, data, classes = at.trained.module, at.data, len(at.data.classes)
    payloads = [sums(module, data.train.pick(part), at.feed, classes).pack() for part in at.parts]
    put(module, payloads, ridge, classes)
    up = sum(wire.length(len(payload), 0) for payload in payloads)
    return Refit(**at.write("refit", sum(map(len, at.parts)), up, ridge=ridge))


def freed(trained: Trained) -> Trained:
    """The same with a last layer that can be fitted, where it is frozen: feature-norm in place of etf."""
    head = getattr(trained.module, "classifier", None)
    if not isinstance(head, ScaledFrame):
        return trained
    trained.module.classifier = head.freed()
    return replace(trained, config=replace(trained.config, head=FeatureNorm(head.scale)))


@torch.no_grad()
def sums(module: nn.Module, split: Split, feed: Feed, classes: int) -> Sums:
    """What one device sends: the sums over its examples, as evaluation sees them."""
    module.eval()
    size = inputs(module, feed.plain(split.images[:1])).shape[1]
    total = Sums(*(torch.zeros(size + 1, width, dtype=torch.float64) for width in (size + 1, classes)))
    for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
        total = total + Sums.of(inputs(module, feed.plain(images)), labels, classes)
    return total


def inputs(module: Any, images: Tensor) -> Tensor:
    """What the last layer's weights see of images (N, C, H, W): (N, features)."""
    features: Tensor = module.features(images)
    head = module.classifier
    return scaled(features, head.scale) if isinstance(head, ScaledLinear) else features


def put(module: Any, payloads: Iterable[bytes], ridge: float, classes: int) -> None:
    """Solve what the devices' sums come to, and write it into the last layer."""
    head = module.classifier
    first, *rest = (Sums.unpack(payload, head.in_features, classes) for payload in payloads)
    weight, bias = sum(rest, first).solve(ridge)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def _checked(trained: Trained) -> Trained:
    """EdgewiseError unless its last layer can be fitted."""
    config, head = trained.config, getattr(trained.module, "classifier", None)
    no_fleet(config, "the sums of their features")
    if not isinstance(config.objective, CrossEntropy):
        raise EdgewiseError("refit: fits classes; the run has another objective than cross-entropy")
    if not isinstance(head, nn.Linear) or not hasattr(trained.module, "features"):
        raise EdgewiseError(
            f"refit: model {config.model} with this head has no last layer to fit; it takes resnet18, "
            "fixup-resnet18, or a model with `features(x)` and a linear `classifier`"
        )
    return trained


__all__ = ["RIDGE", "Refit", "Sums", "inputs", "put", "refit", "sums"]
