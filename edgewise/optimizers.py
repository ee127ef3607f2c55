"""SGD on a flat vector: on the device for federated averaging, on the server for synchronous SGD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise.clipping import FLOOR, clip_units
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

ALL, WEIGHTS = DECAYS = ("all", "weights")


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and weight decay, in PyTorch's convention.

        g <- g + weight_decay * w;  m <- momentum * m + g;  w <- w - lr * m

    Fixup's scalars ("scalar" in the layout) learn at `lr * scalar_share`, which `lr_scale` (the growth of
    the learning rate with the batch) leaves alone: https://arxiv.org/abs/1901.09321 and its training code.
    `decay`: what weight decay is for, "all" or "weights" (matrices and filters: not biases, norms' scales
    and shifts, or Fixup's scalars: He et al. 2019, https://arxiv.org/abs/1812.01187, section 3.1).
    `agc`: where it is above 0, gradients are first clipped to that share of their weights (`clipping.py`).
    What a model holds frozen ("frozen" in the layout) stays as it is.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    lr_scale: float = 1.0
    scalar_share: float = 0.1
    decay: str = ALL
    agc: float = 0.0
    agc_floor: float = FLOOR

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise EdgewiseError(f"sgd: decay is {self.decay!r}; one of: {', '.join(DECAYS)}")
        if not 0 <= self.scalar_share < float("inf"):
            raise EdgewiseError(f"sgd: scalar_share is {self.scalar_share:g}; legal: 0 or more")
        if not 0 <= self.agc < float("inf"):
            raise EdgewiseError(f"sgd: agc is {self.agc:g}; legal: 0 or more")
        if not 0 < self.agc_floor < float("inf"):
            raise EdgewiseError(f"sgd: agc_floor is {self.agc_floor:g}; legal: above 0")

    def start(self, params: Tensor) -> Tensor:
        """The momentum (P,) before the first step; empty when there is none to keep."""
        return torch.zeros_like(params) if self.momentum else params.new_zeros(0)

    def step(self, params: Tensor, grads: Tensor, momentum: Tensor, factor: float, layout: Layout) -> None:
        """One step, in place, on vectors (P,), or on the rows of matrices (G, P) of as many models.

        `grads` is used as scratch space; `factor` is the schedule's, 1 at the peak.
        """
        if self.agc:
            clip_units(params, grads, layout, self.agc, self.agc_floor)
        if self.weight_decay:
            for stretch in self.decayed(layout):
                grads[..., stretch].add_(params[..., stretch], alpha=self.weight_decay)
        direction = grads
        if self.momentum:
            momentum.mul_(self.momentum).add_(grads)
            direction = grads.add_(momentum, alpha=self.momentum) if self.nesterov else momentum
        for stretch, rate in self.rates(layout):
            params[..., stretch].add_(direction[..., stretch], alpha=-rate * factor)

    def reach(self, steps: int) -> float:
        """How many gradients' worth of way `steps` steps go from rest: the sum of the coefficients with which

        the gradients enter. `steps` without momentum; with it a gradient of step k acts in all later ones.
        FedNova's |a|_1 (https://arxiv.org/abs/2007.07481, section 3).
        """
        kept = self.momentum
        carried, total = 0.0, 0.0
        for left in range(steps, 0, -1):
            before, carried = carried, kept * carried + 1
            way = 1 + kept * carried if self.nesterov and kept else carried
            if carried == before:  # and so from here on, however many a device says it took
                return total + left * way
            total += way
        return total

    def gradient_behind(self, update: Tensor, reach: float, layout: Layout) -> Tensor:
        """The mean gradient (P,), weight decay in it, of which an update (P,) is the way.

        `reach`: of its steps, times the schedule's factor. With their number in its place it is the mean of
        plain momentum. Zero where nothing can move.
        """
        gradient = torch.zeros_like(update)
        for stretch, rate in self.rates(layout):
            if rate * reach:
                torch.div(update[stretch], -rate * reach, out=gradient[stretch])
        return gradient

    def decayed(self, layout: Layout) -> list[slice]:
        """The stretches of the vector that weight decay is for."""
        if self.decay == ALL:
            return [slice(0, layout.count)]
        return [stretch for kind, stretch in layout.segments if kind == "weight"]

    def rates(self, layout: Layout) -> list[tuple[slice, float]]:
        """Learning rate by stretch of the vector; neighbours at the same rate are one stretch."""
        shares = {"scalar": self.scalar_share, "frozen": 0.0}
        rates: list[tuple[slice, float]] = []
        for kind, stretch in layout.segments:
            rate = self.lr * shares.get(kind, self.lr_scale)
            if rates and rates[-1][1] == rate:
                rates[-1] = (slice(rates[-1][0].start, stretch.stop), rate)
            else:
                rates.append((stretch, rate))
        return rates
