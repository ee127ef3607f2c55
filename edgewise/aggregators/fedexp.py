"""The mean of the updates, prolonged where they point apart.

FedExP: Speeding Up Federated Averaging via Extrapolation, Jhunjhunwala et al. 2023,
https://arxiv.org/abs/2301.09604

    mean  = weighted mean of u_d
    value = mean * max(1, weighted mean of |u_d|^2 / (2 |mean|^2)), by a factor of `most` at most

Updates of devices that hold other classes are nearly at right angles: of n of them the mean is shorter by the
root of n, though each goes its own part of the way. Devices can then take shorter ways, on which they do not
drift as far, while the server goes as far as before. The paper's epsilon below the fraction is left out, and
`most` is ours: where updates nearly cancel each other nothing else would bound the factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgewise.aggregators.base import Gathering
from edgewise.errors import EdgewiseError
from edgewise.vector import Mean, State, length


@dataclass(frozen=True)
class FedExP:
    """Buffers: the mean. Memory: one vector. As open to faulty devices as the mean, and more."""

    most: float = 4.0
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.most < float("inf"):
            raise EdgewiseError(
                f"aggregate: fedexp prolongs the mean by at most {self.most:g}; legal: 1 or more"
            )

    def check(self, updates: int) -> None:
        """Any number can be averaged."""

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return _Prolonging(Mean(like), self.most)


class _Prolonging:
    def __init__(self, mean: Mean, most: float) -> None:
        self.mean, self.most = mean, most
        self.squares = 0.0  # the sum of weight * |u_d|^2

    def add(self, state: State, weight: float) -> None:
        self.mean.add(state, weight)
        self.squares += weight * length(state.params) ** 2

    def value(self) -> State:
        weight, value = self.mean.weight, self.mean.value()
        short = 2 * weight * length(value.params) ** 2
        # Where the mean is nothing, or is not finite, it is left as it is.
        factor = self.squares / short if 0 < short < float("inf") else 1.0
        value.params.mul_(min(self.most, max(1.0, factor)))
        return value
