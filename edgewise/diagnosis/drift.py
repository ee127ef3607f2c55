"""How far a round's updates disagree, from two running sums: no update is kept.

    cosine     mean over pairs of devices of cos(u_i, u_j) = (|sum u_i / |u_i||^2 - n) / (n (n - 1))
    diversity  sum w_i |u_i| / |sum w_i u_i|, w_i the examples behind u_i

Updates that are all the same have cosine 1 and diversity 1, n orthogonal ones of one length 0 and sqrt(n).
The square of the diversity, with the mean of squares in place of the square of the mean, is the gradient
diversity of Yin et al. 2018, https://arxiv.org/abs/1706.05699, upside down.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgewise.vector import length


class Drift:
    """One round's updates (P,), as they come in; a vector of their size is kept, and another if `adds`: where

    nobody else makes their mean.
    """

    def __init__(self, like: Tensor, adds: bool = True) -> None:
        self.units = torch.zeros_like(like)
        self.total = torch.zeros_like(like) if adds else None
        self.count = 0  # of updates that have a direction
        self.lengths = self.weight = 0.0

    def add(self, update: Tensor, weight: float) -> None:
        """One more update. `weight`: the examples it was trained on. One that is zero has no direction."""
        norm = length(update)
        self.weight += weight
        if norm > 0:
            self.count += 1
            self.lengths += weight * norm
            self.units.add_(update, alpha=1 / norm)
            if self.total is not None:
                self.total.add_(update, alpha=weight)

    @classmethod
    def of(cls, units: Tensor, count: int, lengths: float, weight: float) -> Drift:
        """From what one that does not add updates up has come to, elsewhere."""
        drift = cls(units[:0], adds=False)
        drift.units, drift.count, drift.lengths, drift.weight = units, count, lengths, weight
        return drift

    def join(self, other: Drift) -> None:
        """The updates that another one was given, too; where neither adds them up."""
        self.units.add_(other.units)
        self.count += other.count
        self.lengths += other.lengths
        self.weight += other.weight

    @property
    def cosine(self) -> float | None:
        """The mean over pairs; None where there is no pair."""
        if self.count < 2:
            return None
        pairs = self.count * (self.count - 1)
        return _known((length(self.units) ** 2 - self.count) / pairs)

    def diversity(self, mean: Tensor | None = None) -> float | None:
        """1 or more; None where there is no pair, or the updates add up to nothing.

        `mean`: the updates' mean weighted by examples, where they are not added up here.
        """
        if self.count < 2:
            return None
        if self.total is not None:
            together = length(self.total)
        else:
            assert mean is not None
            together = self.weight * length(mean)
        return _known(self.lengths / together) if together > 0 else None


def _known(value: float) -> float | None:
    """JSON knows no infinity. Six digits: beyond them lies the rounding of the sums."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
