"""SCAFFOLD: each device's gradient is corrected by how its own mean gradient differs from everyone's.

SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, Karimireddy et al. 2020,
https://arxiv.org/abs/1910.06378, algorithm 1 with option II

    each device:  v <- v - lr * (g - c_d + c), K times;  u_d = v - w
                  c_d <- c_d - c - u_d / (lr * a)
    server:       w <- w + server_lr * mean(u_d)
                  c <- c + share * mean(c_d's change) = c + share * (-c - mean(u_d) / (lr * a))

with c_d = c = 0 at the start and `share` the cohort's share of all devices. a is K, or with local momentum
the sum of the coefficients with which K gradients enter u_d: then -u_d / (lr * a) is still a mean of the
device's gradients, and c_d estimates what it should. It needs no second upload: the mean of the c_d's changes
follows from that of the updates. Exactly so where the mean is one and loses nothing. With a codec that does,
c is ahead of the mean of the c_d by the mean of what devices still owe, over lr * a; with an aggregator that
is robust, it is that aggregator's estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgewise import local
from edgewise.algorithms.base import Memory
from edgewise.algorithms.places import DRIFT, Closing, Outset
from edgewise.vector import FlatModel

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold:
    guide: ClassVar[str] = CONTROL
    places: ClassVar[tuple[str, ...]] = (DRIFT,)
    rests: ClassVar[bool] = True

    def correction(self, outset: Outset) -> local.Correction:
        shift = outset.guide - outset.remembered(CONTROL)

        def correct(model: FlatModel) -> None:
            model.grads.add_(shift)

        return correct

    def remember(self, outset: Outset, update: Tensor, steps: int) -> Memory:
        own = outset.remembered(CONTROL)
        if outset.factor:  # else no step has gone anywhere, and says nothing
            own = outset.gradient(update, steps).add_(own).sub_(outset.guide)
        return {CONTROL: own}

    def start(self, params: Tensor) -> dict[str, Tensor]:
        return {CONTROL: params.new_zeros(params.shape)}

    def turn(self, mean: Tensor, closing: Closing) -> Tensor:
        if closing.combined.factor:
            closing.vectors[CONTROL].lerp_(closing.gradient(mean), closing.combined.share)
        return mean
