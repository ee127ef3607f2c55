"""How far devices' updates disagree: the gradient of one step, and where K local steps lead.

At the initial weights every device takes steps of the run's own optimizer on its own data, as in
federated averaging. Two numbers: the mean cosine of two devices' updates (1: all the same), and their
diversity mean |u_d|^2 / |mean u_d|^2 (1: all the same; as many as there are devices: orthogonal). The
same is done with devices that draw from everywhere: no split can be better than that at this batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise import local
from edgewise.assemble import Parts
from edgewise.vector import State

EVERY = (1, 3, 10, 30, 100, 300)  # local steps after which is looked, up to the run's K (10 where K is 1)
LEAST = 10


@dataclass(frozen=True)
class Agreement:
    """After `steps` local steps: of the split's devices, and of devices with IID data."""

    steps: int
    cosine: float
    cosine_iid: float
    diversity: float
    diversity_iid: float

    @property
    def drift(self) -> float:
        """The diversity as a multiple of IID devices'."""
        return self.diversity / self.diversity_iid


def agreement(parts: Parts, devices: Sequence[int]) -> list[Agreement]:
    """At K = 1 (the gradient itself), and along the way to the run's K. The model's state is left as it
    was.
    """
    if len(devices) < 2:
        return []
    most = max(parts.config.algorithm.sync_every, LEAST)
    marks = sorted({*(k for k in EVERY if k < most), most})
    everything = torch.cat([device.indices for device in parts.devices])
    before, mode = parts.model.read(), parts.model.module.training
    try:
        own = [_updates(parts, before, d, parts.devices[d].indices, marks) for d in devices]
        iid = [_updates(parts, before, d, everything, marks) for d in devices]
    finally:
        parts.model.write(before)
        parts.model.module.train(mode)
    found = []
    for index, steps in enumerate(marks):
        cosine, diversity = _compared([updates[index] for updates in own])
        cosine_iid, diversity_iid = _compared([updates[index] for updates in iid])
        found.append(Agreement(steps, cosine, cosine_iid, diversity, diversity_iid))
    return found


def _updates(parts: Parts, start: State, device: int, indices: Tensor, marks: Sequence[int]) -> list[Tensor]:
    """What a device would send after as many local steps as each mark says; at 1, minus its gradient."""
    model, sgd = parts.model, parts.config.algorithm.sgd
    model.write(start)
    momentum, found = sgd.start(model.params), []
    for step in range(marks[-1]):
        model.grads.zero_()
        local.gradient(model, parts.work.feed.batch(device, indices, step), parts.terms.objective)
        if step == 0:
            found.append(-model.grads.clone())
        sgd.step(model.params, model.grads, momentum, 1.0, model.layout)
        if step and step + 1 in marks:
            found.append(model.params - start.params)
    for update in found:
        update[model.layout.local] = 0  # never sent
    return found


def _compared(updates: Sequence[Tensor]) -> tuple[float, float]:
    """Mean cosine of two of them, and their diversity."""
    together = torch.stack(list(updates)).double()
    unit = together / together.norm(dim=1, keepdim=True).clamp(min=1e-30)
    count = len(together)
    cosine = (float(unit.sum(0).square().sum()) - float(unit.square().sum())) / (count * (count - 1))
    mean = float(together.mean(0).square().sum())
    return cosine, float(together.square().sum(1).mean()) / max(mean, 1e-30)
