"""FedLC: logits calibrated by how often a device sees each class.

Federated Learning with Label Distribution Skew via Logits Calibration, Zhang et al. 2022,
https://arxiv.org/abs/2209.00189

    each device:  cross-entropy of the logits z_c - tau * n_c^(-1/4)

n_c are the device's examples of class c. Of a class that it lacks, n_c^(-1/4) is infinite: the class has no
part in the loss, and its logit is pushed neither down nor up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from edgewise import local
from edgewise.accelerator import sent
from edgewise.algorithms.places import LOSS, Outset, check_range
from edgewise.vector import FlatModel


@dataclass(frozen=True)
class FedLC:
    tau: float = 1.0
    places: ClassVar[tuple[str, ...]] = (LOSS,)
    rests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("fedlc: tau", self.tau, 0)

    def objective(self, outset: Outset) -> local.Objective:
        counts = known(outset)

        def calibrated(model: FlatModel, x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            held = over(counts, logits.shape[1])
            margin = self.tau * held.to(logits.dtype).clamp(min=1).pow(-0.25)
            margin = margin.masked_fill(held == 0, float("inf"))
            return F.cross_entropy(logits - margin, y, reduction="none")

        return calibrated


def counted(outset: Outset) -> Tensor:
    """The device's examples of each class, on the CPU."""
    counts = outset.own.counts
    if counts is None:
        raise ValueError("a loss by class, on a device that was not told its classes")
    return counts


def known(outset: Outset) -> Tensor:
    """The same, where the model is."""
    return sent(counted(outset), outset.start.device)


def over(counts: Tensor, classes: int) -> Tensor:
    """The counts over all classes, (classes,)."""
    return F.pad(counts, (0, classes - len(counts)))
