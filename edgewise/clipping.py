"""Adaptive gradient clipping: no unit's gradient longer than a share of its own weights.

High-Performance Large-Scale Image Recognition Without Normalization, Brock et al. 2021,
https://arxiv.org/abs/2102.06171, section 4

    each unit i (a filter, a row of a matrix; a vector of biases or scales is one unit):
        g_i <- g_i * min(1, limit * max(|w_i|, floor) / |g_i|)

The last layer is exempt, as there. A unit of zero weights (Fixup's second convolutions, biases) has no length
to compare with, and with the paper's floor of 0.001 it hardly leaves zero: ours is the length that a filter
usually starts with (measured: LOG.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgewise.vector import Layout

FLOOR = 1.0


def clip_units(params: Tensor, grads: Tensor, layout: Layout, limit: float, floor: float = FLOOR) -> None:
    """Cut `grads` (P,) in place to `limit` times the lengths of the units of `params` (P,)."""
    smallest = torch.finfo(grads.dtype).tiny
    for entry in layout.params:
        if entry.owner == layout.head or entry.start == entry.stop:
            continue
        units = entry.shape[0] if len(entry.shape) > 1 else 1
        weight, gradient = (flat[entry.start : entry.stop].view(units, -1) for flat in (params, grads))
        most = weight.norm(dim=1, keepdim=True).clamp_(min=floor).mul_(limit)
        gradient.mul_(most.div_(gradient.norm(dim=1, keepdim=True).clamp_(min=smallest)).clamp_(max=1))
