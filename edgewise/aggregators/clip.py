"""The weighted mean of updates that are first scaled down to a norm, where theirs is larger.

Can You Really Backdoor Federated Learning?, Sun et al. 2019, https://arxiv.org/abs/1911.07963 (norm
thresholding); a norm taken from the devices' own, by a quantile, after Differentially Private Learning with
Adaptive Clipping, Andrew et al. 2019, https://arxiv.org/abs/1905.03871 (ours: the median of the round itself,
and no noise)

    u_d <- u_d * min(1, norm / |u_d|)
    value = weighted mean of u_d

A faulty device moves the mean by at most its share of the examples times the norm, but it moves it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgewise.aggregators.base import Gathering
from edgewise.aggregators.stack import Stack
from edgewise.errors import EdgewiseError
from edgewise.vector import Mean, State, length


@dataclass(frozen=True)
class Clip:
    """No update counts for more than `norm` (Euclidean). Buffers: their weighted mean, which nothing bounds.

    Memory: one vector.
    """

    norm: float
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise EdgewiseError(f"aggregate: clip at a norm of {self.norm:g}; legal: above 0")

    def check(self, updates: int) -> None:
        """Any number can be averaged."""

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return _Clipping(Mean(like), self.norm)


@dataclass(frozen=True)
class ClipMedian:
    """Clip at the median of the round's own norms. All updates are kept until the round's end."""

    linear: ClassVar[bool] = False

    def check(self, updates: int) -> None:
        """Any number has a median norm."""

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return _ClippingAtMedian(like, folder)


class _Clipping:
    def __init__(self, mean: Mean, norm: float) -> None:
        self.mean, self.norm = mean, norm

    def add(self, state: State, weight: float) -> None:
        found = length(state.params)
        self.mean.add(state, weight, scale=self.norm / found if found > self.norm else 1.0)

    def value(self) -> State:
        return self.mean.value()


class _ClippingAtMedian:
    def __init__(self, like: State, folder: Path | None) -> None:
        self.stack = Stack(like, folder)
        self.norms: list[float] = []
        self.weights: list[float] = []

    def add(self, state: State, weight: float) -> None:
        self.stack.add(state)
        self.norms.append(length(state.params))
        self.weights.append(weight)

    def value(self) -> State:
        if not self.norms:
            raise RuntimeError("the median norm of no updates")
        clipping = _Clipping(Mean(self.stack.like), float(np.median(self.norms)))
        with closing(self.stack) as stack:
            for index, weight in enumerate(self.weights):
                clipping.add(stack.row(index), weight)
        return clipping.value()
