"""Local training: the only place in the package where a model's gradient is computed.

`gradient` is one batch's gradient, all that synchronous SGD needs; `train` takes several steps (federated
averaging and its kin). Algorithms plug in at two places: the *objective* (what a batch's losses are) and the
*correction* (what is done to a gradient before the step). Who needs another gradient than that at the weights
(sharpness-aware minimisation) calls `gradient` more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.optimizers import SGD
from edgewise.vector import FlatModel

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W) and what the answers are held to, (N,) or (N, T)
Objective = Callable[[FlatModel, Tensor, Tensor], Tensor]  # one loss per example, (N,)
Correction = Callable[[FlatModel], None]  # changes model.grads in place
Gradient = Callable[[FlatModel, Batch, Objective], Tensor]  # adds to model.grads; one loss per example, (N,)


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


@dataclass(frozen=True)
class Plugs:
    """What algorithms put in. The corrections are made in order, after each gradient and before its step."""

    objective: Objective = cross_entropy
    gradient: Gradient = gradient
    corrections: tuple[Correction, ...] = ()


PLAIN = Plugs()


def train(
    model: FlatModel,
    batches: Iterable[Batch],
    sgd: SGD,
    factor: float = 1.0,
    plugs: Plugs = PLAIN,
    momentum: Tensor | None = None,
) -> Tensor:
    """Take one step of `sgd` per batch and return the mean loss of each, (K,).

    `momentum`: where it stands, updated in place; from rest if None.
    """
    losses = []
    if momentum is None:
        momentum = sgd.start(model.params)
    for batch in batches:
        model.grads.zero_()
        losses.append(plugs.gradient(model, batch, plugs.objective).mean())
        for correct in plugs.corrections:
            correct(model)
        sgd.step(model.params, model.grads, momentum, factor, model.layout)
    return torch.stack(losses)
