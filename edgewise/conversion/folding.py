"""Norms that need no layer of their own in evaluation, folded into the weights before them.

In eval mode a batch norm is an affine map with fixed numbers, so that conv followed by norm is a conv with
other weights; a weight-standardised convolution is a convolution with the standardised weights. Both are
exact but for the rounding of one product (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgewise.conversion.flow import replace_module, trace
from edgewise.conversion.layers import rebuilt
from edgewise.models.norms import WSConv2d

CLOSE = 1e-4  # of the logits' largest magnitude: beyond it, what was folded was not what follows the layer


def fold(model: nn.Module, example: Tensor) -> tuple[nn.Module, list[str]]:
    """A copy of `model` for evaluation only, and the names of the layers folded away.

    Nothing is folded where the copy would answer `example` (N, ...) in another way: a layer whose output is
    read by others beside the norm is not seen in a forward pass, only in its result.
    """
    folded, names = copy.deepcopy(model).eval(), []
    for name, module in list(folded.named_modules()):
        if isinstance(module, WSConv2d):
            folded = replace_module(folded, name, plain(module))
            names.append(name)
    flow = trace(folded, example)
    for norm_name, feeder_name in flow.feeders.items():
        feeder, norm = folded.get_submodule(feeder_name), folded.get_submodule(norm_name)
        if not _foldable(feeder, norm):
            continue
        fuse: Any = fuse_linear_bn_eval if isinstance(feeder, nn.Linear) else fuse_conv_bn_eval
        folded = replace_module(folded, feeder_name, fuse(feeder, norm))
        folded = replace_module(folded, norm_name, nn.Identity())
        names.append(norm_name)
    after = trace(folded, example).output
    if (after - flow.output).abs().max() > CLOSE * max(1.0, float(flow.output.abs().max())):
        return copy.deepcopy(model).eval(), []
    return folded, names


def _foldable(feeder: nn.Module, norm: nn.Module) -> bool:
    known = isinstance(norm, _BatchNorm) and norm.running_mean is not None and not hasattr(norm, "act")
    return known and type(feeder) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def plain(conv: WSConv2d) -> nn.Conv2d:
    """The convolution that a weight-standardised one is, once training is over."""
    made = rebuilt(nn.Conv2d, conv)
    made.weight.copy_(conv.standardised())
    return made
