"""How unlike the devices are, from the examples of each class that each of them holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Where batch norm is expected to cost more than ten points: chosen on the "rehearsal" splits of
# results/foresight, and judged on others.
BREAKS = 0.84
# From here to BREAKS splits of digits and CIFAR-10 lost 4 to 20 points (results/foresight). These splits are
# what BREAKS was judged on, so this is said in words and forecasts nothing.
DOUBTFUL = 0.75


@dataclass(frozen=True)
class Skew:
    """`divergence`: mutual information of label and device, as a share of the label's entropy: 0 for devices
    that hold one mix, 1 where the device tells the label. It is the Jensen-Shannon divergence of the devices'
    mixes, weighted by what they hold. `apart`: see `apart`. `largest`: examples of the largest device, as a
    multiple of an even share; `smallest` likewise. `alone`: classes that one device alone holds.
    """

    divergence: float
    apart: float
    largest: float
    smallest: float
    alone: int


def skew(held: Tensor) -> Skew:
    """From `held` (devices, classes), the examples of each class that each device holds."""
    counts = held.double()
    sizes = counts.sum(1)
    even = float(sizes.mean())
    return Skew(
        divergence=_divergence(counts),
        apart=apart(held),
        largest=float(sizes.max()) / even,
        smallest=float(sizes.min()) / even,
        alone=int(((held > 0).sum(0) == 1).sum()),
    )


def apart(held: Tensor) -> float:
    """Share of the pairs of classes that are told apart on no common device: 0 for IID data, 1 for one
    class each.

    A batch norm subtracts what its batch has in common. So two classes are learned against each other
    only where one device's batches hold both, and what the device's own statistics give away (its mix of
    classes) is missing in evaluation. A pair (a, b) is weighted by the classes' shares, and counts as
    contrasted to the degree to which both lie on the same devices: the cosine between the two classes'
    spreads over devices.
    """
    counts = held.double()
    spread = counts / counts.square().sum(0).sqrt().clamp(min=1e-12)
    share = counts.sum(0) / counts.sum()
    weight = share[:, None] * share
    weight.fill_diagonal_(0)
    if not float(weight.sum()):
        return 0.0  # a single class: there is nothing to tell apart
    return 1 - float((spread.T @ spread * weight).sum() / weight.sum())


def _divergence(counts: Tensor) -> float:
    mix = counts / counts.sum(1, keepdim=True)
    whole = counts.sum(0) / counts.sum()
    entropy = float(_entropy(whole))
    within = float((_entropy(mix) * counts.sum(1)).sum() / counts.sum())
    return (entropy - within) / entropy if entropy else 0.0


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * torch.where(shares > 0, shares, 1.0).log()).sum(-1)
