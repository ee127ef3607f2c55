"""SAM: the gradient at the worst point nearby, so that devices end in flat places.

Sharpness-Aware Minimization for Efficiently Improving Generalization, Foret et al. 2021,
https://arxiv.org/abs/2010.01412; on devices (FedSAM): Generalized Federated Learning via Sharpness Aware
Minimization, Qu et al. 2022, https://arxiv.org/abs/2206.02618

    each step:  g = gradient at v;  take the step with the gradient at v + rho * g / |g|

It costs a second gradient. The losses and, with batch norm, the running statistics are those of the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgewise import local
from edgewise.algorithms.places import GRADIENT, check_range
from edgewise.local import Batch, Objective
from edgewise.vector import FlatModel

TINY = 1e-30  # in place of the length of a gradient that is zero: such a one goes nowhere


@dataclass(frozen=True)
class SAM:
    rho: float = 0.05
    places: ClassVar[tuple[str, ...]] = (GRADIENT,)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("sam: rho", self.rho, 0)

    def gradient(self, inner: local.Gradient) -> local.Gradient:
        def sharp(model: FlatModel, batch: Batch, objective: Objective) -> Tensor:
            losses = inner(model, batch, objective)
            here, norm = model.read(), model.grads.norm().clamp(min=TINY)
            model.params.addcmul_(model.grads, self.rho / norm)  # not read: no wait for an accelerator
            model.grads.zero_()
            inner(model, batch, objective)
            model.write(here)
            return losses

        return sharp
