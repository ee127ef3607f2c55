"""FedDyn: every device's objective gets a linear and a quadratic term, so that all share one minimum.

Federated Learning Based on Dynamic Regularization, Acar et al. 2021, https://arxiv.org/abs/2111.04263

    each device:  minimise f_d(v) - <g_d, v> + alpha / 2 * |v - w|^2, so every step has the gradient
                  g - g_d + alpha * (v - w);  u_d = v - w
                  g_d <- g_d - alpha * u_d
    server:       h <- h - alpha * share * mean(u_d)
                  w <- w + mean(u_d) - h / alpha

with g_d = h = 0 at the start and `share` the cohort's share of all devices, so that h stays the mean of all
g_d. It needs no second upload or download. At a fixed point no device moves: g_d is its gradient there, and
h = 0 is their mean, so it is the optimum, however many steps a device takes. Exactly so where the mean of the
updates is one and loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgewise import local
from edgewise.algorithms.base import Memory
from edgewise.algorithms.fedprox import pull
from edgewise.algorithms.places import AVERAGE, DRIFT, SERVER, Closing, Outset, check_above
from edgewise.vector import FlatModel

OWN, MEAN = "gradient", "mean_gradient"


@dataclass(frozen=True)
class FedDyn:
    alpha: float = 0.1
    places: ClassVar[tuple[str, ...]] = (DRIFT, AVERAGE, SERVER)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_above("feddyn: alpha", self.alpha)

    def correction(self, outset: Outset) -> local.Correction:
        own, pulled = outset.remembered(OWN), pull(outset, self.alpha)

        def correct(model: FlatModel) -> None:
            pulled(model)
            model.grads.sub_(own)

        return correct

    def remember(self, outset: Outset, update: Tensor, steps: int) -> Memory:
        return {OWN: outset.remembered(OWN).sub(update, alpha=self.alpha)}

    def start(self, params: Tensor) -> dict[str, Tensor]:
        return {MEAN: params.new_zeros(params.shape)}

    def turn(self, mean: Tensor, closing: Closing) -> Tensor:
        mean_gradient = closing.vectors[MEAN]
        mean_gradient.sub_(mean, alpha=self.alpha * closing.combined.share)
        return mean.sub(mean_gradient, alpha=1 / self.alpha)
