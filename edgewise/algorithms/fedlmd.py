"""FedLMD: devices keep what the round's first model says of the classes that they lack.

Federated Learning with Label-Masking Distillation, Lu et al. 2023, https://arxiv.org/abs/2409.13136

    each device:  cross-entropy + beta * tau^2 * KL(p(t) || q(s))

q is the softmax of the logits s, at temperature tau, over all classes but the true one; p that of the
teacher's logits t over the classes of which the device holds no example. The teacher is the model that the
round began with, as it is evaluated. So the mass that the device gives to other classes is to lie on those
that it does not see, spread as the teacher spreads it. A device that lacks no class trains with cross-entropy
alone. It costs one more forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from edgewise import local
from edgewise.accelerator import sent
from edgewise.algorithms.fedlc import counted, over
from edgewise.algorithms.places import LOSS, Outset, check_above, check_range
from edgewise.vector import FlatModel


@dataclass(frozen=True)
class FedLMD:
    beta: float = 1.0
    tau: float = 1.0
    places: ClassVar[tuple[str, ...]] = (LOSS,)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("fedlmd: beta", self.beta, 0)
        check_above("fedlmd: tau", self.tau)

    def objective(self, outset: Outset) -> local.Objective:
        counts, teacher = counted(outset), outset.model.teacher()

        @cache
        def lacking(classes: int) -> Tensor:
            return sent((over(counts, classes) == 0).nonzero().flatten(), outset.start.device)

        def distilled(model: FlatModel, x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            absent = lacking(logits.shape[1])
            right = F.cross_entropy(logits, y, reduction="none")
            if not len(absent):
                return right
            kept = F.log_softmax(teacher(x)[:, absent] / self.tau, 1)
            not_true = logits.scatter(1, y[:, None], float("-inf"))
            own = F.log_softmax(not_true / self.tau, 1)[:, absent]
            return right + self.beta * self.tau**2 * kept.exp().mul(kept - own).sum(1)

        return distilled
