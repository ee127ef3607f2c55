"""FedRS: the logits of classes that a device lacks are held down.

FedRS: Federated Learning with Restricted Softmax for Label Distribution Non-IID Data, Li and Zhan 2021,
https://doi.org/10.1145/3447548.3467254

    each device:  cross-entropy of the logits r_c * z_c;  r_c = alpha + (1 - alpha) * n_c / max(n)

n_c are the device's examples of class c. The paper's r_c is alpha for absent classes and 1 for others; this
is its authors' code, which agrees where a device holds as many of each of its classes. There the last layer
has no bias; where it has one, it is scaled too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from edgewise import local
from edgewise.algorithms.fedlc import known, over
from edgewise.algorithms.places import LOSS, Outset, check_above
from edgewise.vector import FlatModel


@dataclass(frozen=True)
class FedRS:
    alpha: float = 0.5
    places: ClassVar[tuple[str, ...]] = (LOSS,)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_above("fedrs: alpha", self.alpha, 0, 1)

    def objective(self, outset: Outset) -> local.Objective:
        counts = known(outset)

        def restricted(model: FlatModel, x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            held = over(counts, logits.shape[1]).to(logits.dtype)
            scale = self.alpha + (1 - self.alpha) * held / held.max()
            return F.cross_entropy(logits * scale, y, reduction="none")

        return restricted
