"""FedNova: devices that take more steps do not pull harder.

Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, Wang et al. 2020,
https://arxiv.org/abs/2007.07481

    each device:  u_d = v - w after K_d steps; send u_d / a_d
    server:       w <- w + server_lr * mean(a_d) * mean(u_d / a_d)

a_d is K_d, or with local momentum the sum of the coefficients with which K_d gradients enter u_d. Both means
weigh alike. Averaging u_d itself, as FedAvg does, goes to the minimum of an objective in which a device
counts a_d times; this goes to that of the weighted objective. Where all take the same number of steps it is
FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgewise.algorithms.places import AVERAGE, Closing, Outset


@dataclass(frozen=True)
class FedNova:
    places: ClassVar[tuple[str, ...]] = (AVERAGE,)
    rests: ClassVar[bool] = True

    def sent(self, outset: Outset, update: Tensor, steps: int) -> Tensor:
        return update.div_(outset.sgd.reach(steps))

    def start(self, params: Tensor) -> dict[str, Tensor]:
        return {}

    def turn(self, mean: Tensor, closing: Closing) -> Tensor:
        return mean * closing.reach
