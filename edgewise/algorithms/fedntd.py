"""FedNTD: devices keep what the round's first model says of the classes that an example is not of.

Preservation of the Global Knowledge by Not-True Distillation in Federated Learning, Lee et al. 2022,
https://arxiv.org/abs/2106.03097

    each device:  cross-entropy + beta * tau^2 * KL(q(t) || q(s))

q is the softmax, at temperature tau, over all classes but the true one; s are the logits, t those of the
teacher: the model that the round began with, as it is evaluated. It costs one more forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise import local
from edgewise.algorithms.places import LOSS, Outset, check_above, check_range
from edgewise.vector import FlatModel


@dataclass(frozen=True)
class FedNTD:
    beta: float = 1.0
    tau: float = 1.0
    places: ClassVar[tuple[str, ...]] = (LOSS,)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("fedntd: beta", self.beta, 0)
        check_above("fedntd: tau", self.tau)

    def objective(self, outset: Outset) -> local.Objective:
        teacher = outset.model.teacher()

        def distilled(model: FlatModel, x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            kept = not_true(teacher(x), y, self.tau)
            apart = kept.exp().mul(kept - not_true(logits, y, self.tau)).sum(1)
            return F.cross_entropy(logits, y, reduction="none") + self.beta * self.tau**2 * apart

        return distilled


def not_true(logits: Tensor, y: Tensor, tau: float) -> Tensor:
    """Log-probabilities (N, classes - 1), at temperature tau, of the classes that y (N,) is not."""
    place = torch.arange(logits.shape[1] - 1, device=y.device)
    others = place + (place >= y[:, None])  # of a shape that is known, as what a mask picks is not
    return F.log_softmax(logits.gather(1, others) / tau, 1)
