"""Fixup for any residual net: no norm, but an initialisation and a few scalars that let it train.

Zhang, Dauphin and Ma 2019 (arXiv 1901.09321). With L branches of m convolutions each: the classifier and
the last convolution of every branch start at zero, the others at He's draw times L ** (-1 / (2m - 2)); a
scalar bias stands before every convolution and after it, and a scalar multiplier on the last of a branch.
The weights are drawn anew: Fixup is an initialisation, and says nothing of weights that were trained with
norms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgewise.conversion.flow import replace_module
from edgewise.conversion.layers import rebuilt
from edgewise.conversion.residual import Branch
from edgewise.errors import EdgewiseError

SCALARS = ("before", "scale", "after")


def _scalar(like: Tensor, value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(like.new_full((1,), value))


class FixupConv2d(nn.Conv2d):
    """A convolution between two scalar biases; `last` of its branch, it has a scalar multiplier too."""

    before: nn.Parameter
    after: nn.Parameter
    scale: nn.Parameter | None

    @classmethod
    def of(cls, conv: nn.Conv2d, last: bool) -> FixupConv2d:
        made = rebuilt(cls, conv)
        made.before, made.after = _scalar(conv.weight), _scalar(conv.weight)
        made.scale = _scalar(conv.weight, 1.0) if last else None
        return made

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H', W')."""
        y = super().forward(input + self.before)
        return (y if self.scale is None else y * self.scale) + self.after

    def parameter_kind(self, name: str) -> str | None:
        """Read by `kinds.kind`: scalars learn at their own rate."""
        return "scalar" if name in SCALARS else None


class Shift(nn.Module):
    """A scalar bias, in place of a norm that no convolution feeds."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.shift = _scalar(like)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x + self.shift

    def parameter_kind(self, name: str) -> str | None:
        return "scalar"


@torch.no_grad()
def draw(conv: nn.Conv2d, factor: float) -> None:
    """He's draw (fan-out, counted for a group) times `factor`; zeros for 0."""
    fan_out = conv.out_channels // conv.groups * math.prod(conv.kernel_size)
    conv.weight.normal_(0, factor * math.sqrt(2 / fan_out))
    if conv.bias is not None:
        conv.bias.zero_()


def apply(model: nn.Module, branches: list[Branch]) -> dict[str, str]:
    """Change `model` in place, whose norms are gone already: what became of each convolution, in words.

    EdgewiseError for a model without residual branches.
    """
    if not branches:
        raise EdgewiseError("fixup: the model has no residual branches; take another norm")
    depth, told = len(branches), dict[str, str]()
    convs = {name: module for name, module in model.named_modules() if type(module) is nn.Conv2d}
    first = next(iter(convs), None)
    for name, conv in convs.items():
        if name != first and not any(name in branch.convs for branch in branches):
            draw(conv, 1.0)
            told[name] = "drawn anew (He)"
    for branch in branches:
        inner = [name for name in branch.convs if name in convs]
        for index, name in enumerate(inner):
            last = index == len(inner) - 1
            factor = 0.0 if last else depth ** (-1 / (2 * len(inner) - 2))
            draw(convs[name], factor)
            replace_module(model, name, FixupConv2d.of(convs[name], last))
            drawn = "zero" if last else f"drawn anew times {factor:.3f}"
            told[name] = f"{drawn}, with its scalars"
    _zero_classifier(model, told)
    return told


@torch.no_grad()
def _zero_classifier(model: nn.Module, told: dict[str, str]) -> None:
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear[-1:]:
        module.weight.zero_()
        if module.bias is not None:
            module.bias.zero_()
        told[name] = "zero (the classifier)"
