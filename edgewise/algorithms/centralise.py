"""Gradient centralisation: the gradient of each filter has mean zero.

Gradient Centralization: A New Optimization Technique for Deep Neural Networks, Yong et al. 2020,
https://arxiv.org/abs/2004.01461

    each step:  g_i <- g_i - mean(g_i) for the weights i of every output of a convolution or linear layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgewise import local
from edgewise.algorithms.places import GRADIENT, Outset
from edgewise.vector import FlatModel


@dataclass(frozen=True)
class Centralise:
    places: ClassVar[tuple[str, ...]] = (GRADIENT,)
    rests: ClassVar[bool] = False

    def correction(self, outset: Outset) -> local.Correction:
        entries = [entry for entry in outset.model.layout.params if len(entry.shape) > 1]
        grads = outset.model.grads
        weights = [grads[e.start : e.stop].view(e.shape[0], -1) for e in entries]

        def correct(model: FlatModel) -> None:
            for weight in weights:
                weight.sub_(weight.mean(1, keepdim=True))

        return correct
