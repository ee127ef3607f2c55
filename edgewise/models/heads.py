"""The last layer as a setting: each head is a frozen value that makes it, from `features` numbers to logits.

Where a device lacks classes, the last layer forgets first: nothing local pushes the logits of its own classes
down on images of others. Two cures bound how far it can go.

feature-norm: features scaled to one length before the linear layer, as in NormFace, Wang et al. 2017,
    https://arxiv.org/abs/1704.06369. A logit can then grow by its weights only, not by longer features.
etf: weights fixed from the start to a simplex equiangular tight frame, where training ends anyway on balanced
    data (Papyan et al. 2020, https://arxiv.org/abs/2008.08186); for skewed devices: FedETF, Li et al. 2023,
    https://arxiv.org/abs/2303.10058. There is nothing left in the head to drift apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.errors import EdgewiseError


class Head(Protocol):
    def layer(self, features: int, classes: int) -> nn.Module:
        """From features (N, features) to logits (N, classes)."""
        ...


@dataclass(frozen=True)
class Linear:
    """Weights and a bias."""

    def layer(self, features: int, classes: int) -> nn.Module:
        return nn.Linear(features, classes)


@dataclass(frozen=True)
class FeatureNorm:
    """Weights and a bias, after features are scaled to the length `scale` * sqrt(features)."""

    scale: float = 0.5

    def __post_init__(self) -> None:
        _check_scale("feature-norm", self.scale)

    def layer(self, features: int, classes: int) -> nn.Module:
        return ScaledLinear(features, classes, self.scale)


@dataclass(frozen=True)
class Etf:
    """Frozen weights and no bias, after features are scaled to the length `scale` * sqrt(features).

    The weights of a class have length 1; those of any two enclose the same, largest possible angle, of cosine
    -1 / (classes - 1). Which frame of all these it is depends on the seed of the run.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_scale("etf", self.scale)

    def layer(self, features: int, classes: int) -> nn.Module:
        return ScaledFrame(features, classes, self.scale)


class ScaledLinear(nn.Linear):
    """`nn.Linear` on features of one length; its weights have the same names, and start alike."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) to (N, classes)."""
        return super().forward(scaled(x, self.scale))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale:g}"


class ScaledFrame(nn.Module):
    """A simplex equiangular tight frame on features of one length: `weight` (classes, features) is frozen."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # A parameter and not a buffer: buffers are averaged, which rounds; a frozen parameter gets no update.
        self.weight = nn.Parameter(frame(features, classes), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) to (N, classes)."""
        return F.linear(scaled(x, self.scale), self.weight)

    def freed(self) -> ScaledLinear:
        """A layer that computes the same and can be fitted: `FeatureNorm` of this scale."""
        classes, features = self.weight.shape
        layer = ScaledLinear(features, classes, self.scale).to(self.weight)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.zero_()
        return layer

    def extra_repr(self) -> str:
        classes, features = self.weight.shape
        return f"in_features={features}, out_features={classes}, scale={self.scale:g}"


def scaled(x: Tensor, scale: float) -> Tensor:
    """Rows (N, features) of the length scale * sqrt(features), a typical entry then being `scale`."""
    return F.normalize(x, dim=1) * (scale * math.sqrt(x.shape[1]))


def frame(features: int, classes: int) -> Tensor:
    """A simplex equiangular tight frame, (classes, features), in directions drawn by PyTorch's generator.

    sqrt(C / (C - 1)) (I - 1 1^T / C) U^T, where U has orthonormal columns. EdgewiseError where so many
    classes do not fit.
    """
    if not 2 <= classes <= features:
        raise EdgewiseError(
            f"head: etf has no frame for {classes} classes in {features} features; it needs 2 classes or "
            "more and as many features as classes: a larger width, or another head"
        )
    directions, _ = torch.linalg.qr(torch.randn(features, classes, dtype=torch.float64))
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return (math.sqrt(classes / (classes - 1)) * centred @ directions.T).float()


def _check_scale(name: str, scale: float) -> None:
    if not 0 < scale < math.inf:
        raise EdgewiseError(f"head: {name}:{scale:g}; legal: a scale above 0")


DEFAULT_HEAD = Linear()
HEADS: dict[str, type[Any]] = {"linear": Linear, "feature-norm": FeatureNorm, "etf": Etf}
