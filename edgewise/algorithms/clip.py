"""Gradients cut to a norm, on the device, before anything else is done to them.

On the difficulty of training recurrent neural networks, Pascanu et al. 2013, https://arxiv.org/abs/1211.5063

    each step:  g <- g * min(1, norm / |g|)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgewise import local
from edgewise.algorithms.places import GRADIENT, Outset, check_above
from edgewise.vector import FlatModel


@dataclass(frozen=True)
class Clip:
    norm: float = 10.0
    places: ClassVar[tuple[str, ...]] = (GRADIENT,)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_above("clip: norm", self.norm)

    def correction(self, outset: Outset) -> local.Correction:
        def correct(model: FlatModel) -> None:
            norm = model.grads.norm().double()
            model.grads.mul_((self.norm / norm).clamp(max=1))  # not read: no wait for an accelerator

        return correct
