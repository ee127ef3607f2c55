"""How far each device's normalisation statistics lie from everyone's, layer by layer, at the initial weights.

Every device's examples pass the model once in training mode, so that each norm works with the device's own
statistics, as in training. Per layer: the share of a channel's variance that lies *between* devices, and the
divergence of a device's normal distribution from the pooled one. The same is measured on the same amounts of
examples drawn from everywhere: what then remains is chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise import randomness
from edgewise.assemble import Parts
from edgewise.conversion.recalibration import Moments

EXAMPLES = 256  # of a device: enough for its statistics, little enough for a minute on a CPU
BROKEN = 2.0  # times what chance makes of the gap: beyond it, a layer's statistics tell devices apart


@dataclass(frozen=True)
class LayerGap:
    """One norm. `gap`: root mean square distance of a device's mean from the mean of all, in deviations
    of all (average over channels); `chance`: the same on randomly dealt examples; `divergence`:
    Kullback-Leibler of a device's normal distribution from the pooled one, in nats a channel, less that
    of chance.
    """

    name: str
    kind: str
    gap: float
    chance: float
    divergence: float

    @property
    def times(self) -> float:
        """The gap as a multiple of chance's."""
        return self.gap / self.chance if self.chance else 1.0

    @property
    def breaks(self) -> bool:
        return self.times >= BROKEN


def layer_gaps(parts: Parts, devices: Sequence[int]) -> list[LayerGap]:
    """The gap of every batch norm of the run's model over `devices`, in the order of the model.

    Empty where the model has none. The model's state is left as it was.
    """
    norms: dict[str, nn.Module] = {
        name: module for name, module in parts.model.module.named_modules() if isinstance(module, _BatchNorm)
    }
    if not norms or len(devices) < 2:
        return []
    own = [_drawn(parts.devices[d].indices, parts.config.seed, d) for d in devices]
    everything = torch.cat([device.indices for device in parts.devices])
    everyone = _drawn(everything, parts.config.seed, -1, sum(map(len, own)))
    random = list(everyone.split([len(part) for part in own]))
    before, mode = parts.model.read(), parts.model.module.training
    try:
        real, chance = (_distances(parts, norms, part) for part in (own, random))
    finally:
        parts.model.write(before)
        parts.model.module.train(mode)
    return [
        LayerGap(name, type(norms[name]).__name__, gap, chance[name][0], divergence - chance[name][1])
        for name, (gap, divergence) in real.items()
    ]


def _drawn(indices: Tensor, seed: int, device: int, most: int = EXAMPLES) -> Tensor:
    order = torch.randperm(len(indices), generator=randomness.generator(seed, "inspect", device + 1))
    return indices[order[:most].to(indices.device)]


def _distances(
    parts: Parts, norms: dict[str, nn.Module], dealt: Sequence[Tensor]
) -> dict[str, tuple[float, float]]:
    """Gap and divergence of every norm that is used."""
    means: dict[str, list[Tensor]] = {name: [] for name in norms}
    variances: dict[str, list[Tensor]] = {name: [] for name in norms}
    for indices in dealt:
        for name, moments in _moments(parts, norms, indices).items():
            means[name].append(moments.mean)
            variances[name].append(moments.variance)
    used = [name for name in norms if len(means[name]) == len(dealt)]
    return {name: _distance(torch.stack(means[name]), torch.stack(variances[name])) for name in used}


@torch.no_grad()
def _moments(parts: Parts, norms: dict[str, nn.Module], indices: Tensor) -> dict[str, Moments]:
    """What each norm takes in while one device's examples pass, in training mode."""
    found: dict[str, Moments] = {}

    def watch(name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.setdefault(name, Moments()).add(arguments[0])

    hooks = [module.register_forward_pre_hook(partial(watch, name)) for name, module in norms.items()]
    if len(indices) == 1:
        indices = indices.repeat(2)  # a batch norm may refuse a single example
    feed = parts.work.feed
    try:
        parts.model.module.train()
        for piece in indices.split(max(parts.config.batch, 2)):
            if len(piece) > 1:
                parts.model(feed.plain(feed.split.images[piece]))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _distance(means: Tensor, variances: Tensor) -> tuple[float, float]:
    """From devices' means and variances (D, C)."""
    centre = means.mean(0)
    between = means.var(0, correction=0)
    whole = (variances.mean(0) + between).clamp(min=1e-12)
    gap = math.sqrt(float((between / whole).mean()))
    each = variances.clamp(min=1e-12 * float(whole.max()))
    nats = ((whole / each).log() + (each + (means - centre).square()) / whole - 1) / 2
    return gap, float(nats.mean())
