"""Local training: the only place in the package where a gradient is computed.

`gradient` is one batch's gradient, all that synchronous SGD needs; `train` takes several steps (federated
averaging and its kin). Algorithms plug in at two places: the *objective* (what a batch's losses are) and the
*correction* (what is done to a gradient before the step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.optimizers import SGD
from edgewise.vector import FlatModel

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W) and what the answers are held to, (N,) or (N, T)
Objective = Callable[[FlatModel, Tensor, Tensor], Tensor]  # one loss per example, (N,)
Correction = Callable[[FlatModel], None]  # changes model.grads in place


def cross_entropy(model: FlatModel, x: Tensor, y: Tensor) -> Tensor:
    """The usual loss of classification, per example."""
    return F.cross_entropy(model(x), y, reduction="none")


def gradient(
    model: FlatModel, batch: Batch, objective: Objective = cross_entropy, share: float = 1.0
) -> Tensor:
    """Add `share` times the gradient of the batch's mean loss to `model.grads`; return the losses (N,)."""
    if not model.module.training:  # walking over the modules costs a tenth of a millisecond
        model.module.train()
    losses = objective(model, *batch)
    (losses.mean() * share).backward()
    return losses.detach()


def train(
    model: FlatModel,
    batches: Iterable[Batch],
    sgd: SGD,
    factor: float = 1.0,
    objective: Objective = cross_entropy,
    correction: Correction | None = None,
) -> float:
    """Take one step of `sgd` per batch from a fresh momentum and return the mean loss.

    The momentum starts at zero every round: a device that kept it would push with directions of a model
    that the server has replaced since.
    """
    momentum, losses = sgd.start(model.params), []
    for batch in batches:
        model.grads.zero_()
        losses.append(gradient(model, batch, objective).mean())
        if correction is not None:
            correction(model)
        sgd.step(model.params, model.grads, momentum, factor, model.layout)
    return float(torch.stack(losses).mean())
