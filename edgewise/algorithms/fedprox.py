"""FedProx: a pull towards the model that the round began with.

Federated Optimization in Heterogeneous Networks, Li et al. 2020, https://arxiv.org/abs/1812.06127

    each device:  minimise f_d(v) + mu / 2 * |v - w|^2, so every step has the gradient g + mu * (v - w)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgewise import local
from edgewise.algorithms.places import DRIFT, Outset, check_range
from edgewise.vector import FlatModel


@dataclass(frozen=True)
class FedProx:
    mu: float = 0.01
    places: ClassVar[tuple[str, ...]] = (DRIFT,)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("fedprox: mu", self.mu, 0)

    def correction(self, outset: Outset) -> local.Correction:
        return pull(outset, self.mu)


def pull(outset: Outset, mu: float) -> local.Correction:
    """Adds mu * (v - w) to a gradient at v; w is where the round began."""
    apart = torch.empty_like(outset.start)

    def correct(model: FlatModel) -> None:
        torch.sub(model.params, outset.start, out=apart)
        model.grads.add_(apart, alpha=mu)

    return correct
