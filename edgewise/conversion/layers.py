"""One norm into another, with what mathematics lets it keep.

In evaluation a batch norm is y = weight * (x - mean) / std + bias with fixed numbers. Every target keeps
weight, bias, eps and whether they train; those that keep running statistics keep them too, and then
answer as before. For the others, whose statistics are the sample's own, weight and bias mean the same
only where a sample's statistics are those of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.models.norms import Norm


@dataclass(frozen=True)
class Carried:
    """A new layer in place of `kind`. `exact`: in evaluation it answers as the old one did."""

    layer: nn.Module
    exact: bool
    words: str


@torch.no_grad()
def convert_layer(old: _BatchNorm, norm: Norm) -> Carried:
    """`old`, over (N, C, ...), as a layer of `norm`, on the same device and in the same precision."""
    new = norm.layer(old.num_features)
    if old.weight is None and isinstance(new, nn.GroupNorm):
        new = nn.GroupNorm(new.num_groups, new.num_channels, affine=False)
    elif old.weight is None and isinstance(new, _BatchNorm):
        new.weight = new.bias = cast(Any, None)
    new = new.to(next((t for t in (old.weight, old.running_mean) if t is not None), torch.empty(0)))
    kept = []
    if old.weight is not None and getattr(new, "weight", None) is not None:
        for name in ("weight", "bias"):
            target, source = getattr(new, name), getattr(old, name)
            target.copy_(source)
            target.requires_grad_(source.requires_grad)
        kept.append("weight, bias")
    if not isinstance(new, nn.Identity):
        setattr(new, "eps", old.eps)  # noqa: B010  (for mypy a module has no such attribute)
    exact = _carry_statistics(old, new)
    kept += ["running statistics"] if exact else []
    new.train(old.training)
    return Carried(_with_activation(old, new), exact, ", ".join(kept) or "nothing to keep")


def _carry_statistics(old: _BatchNorm, new: nn.Module) -> bool:
    if not isinstance(new, _BatchNorm) or old.running_mean is None or old.running_var is None:
        return False
    if new.running_mean is None or new.running_var is None:
        return False
    new.running_mean.copy_(old.running_mean)
    new.running_var.copy_(old.running_var)
    return True


def _with_activation(old: _BatchNorm, new: nn.Module) -> nn.Module:
    """timm's norms hold their dropout and activation: these stay."""
    after = [getattr(old, name, None) for name in ("drop", "act")]
    rest = [module for module in after if isinstance(module, nn.Module)]
    return nn.Sequential(new, *rest) if rest else new


Conv = TypeVar("Conv", bound=nn.Conv2d)


@torch.no_grad()
def rebuilt(kind: type[Conv], conv: nn.Conv2d) -> Conv:
    """`conv` as a convolution of another class: the same sizes, weights, precision and mode."""
    made = kind(
        conv.in_channels,
        conv.out_channels,
        cast(tuple[int, int], conv.kernel_size),
        cast(tuple[int, int], conv.stride),
        padding=cast(tuple[int, int], conv.padding),
        dilation=cast(tuple[int, int], conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    ).to(conv.weight)
    for name, source in conv.named_parameters():
        target = made.get_parameter(name)
        target.copy_(source)
        target.requires_grad_(source.requires_grad)
    made.train(conv.training)
    return made
