"""FedCM: every local step goes mostly where all devices went in the round before.

FedCM: Federated Learning with Client-level Momentum, Xu et al. 2021, https://arxiv.org/abs/2106.10874

    each device:  v <- v - lr * (alpha * g + (1 - alpha) * D), K times;  u_d = v - w
    server:       w <- w + server_lr * mean(u_d);  D <- -mean(u_d) / (lr * a)

with D = 0 at the start; a is K, or with local momentum the sum of the coefficients with which K gradients
enter u_d. D goes down to the devices beside the state; nothing more comes up. At K = 1 it is SGD with the
momentum m <- alpha * g + (1 - alpha) * m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgewise import local
from edgewise.algorithms.places import DRIFT, Closing, Outset, check_above
from edgewise.vector import FlatModel

DIRECTION = "direction"


@dataclass(frozen=True)
class FedCM:
    alpha: float = 0.1
    guide: ClassVar[str] = DIRECTION
    places: ClassVar[tuple[str, ...]] = (DRIFT,)
    rests: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_above("fedcm: alpha", self.alpha, 0, 1)

    def correction(self, outset: Outset) -> local.Correction:
        direction, share = outset.guide, 1 - self.alpha

        def correct(model: FlatModel) -> None:
            model.grads.lerp_(direction, share)

        return correct

    def start(self, params: Tensor) -> dict[str, Tensor]:
        return {DIRECTION: params.new_zeros(params.shape)}

    def turn(self, mean: Tensor, closing: Closing) -> Tensor:
        if closing.combined.factor:
            closing.vectors[DIRECTION].copy_(closing.gradient(mean))
        return mean
