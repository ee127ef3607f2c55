"""Fixup ResNet18: no norm at all, but an initialisation that lets it train.

Zhang, Dauphin and Ma 2019 (arXiv 1901.09321): with every residual branch zero at the start, the rest
scaled by depth, and scalar biases and scales where the norms' affine weights would be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.models.heads import DEFAULT_HEAD, Head
from edgewise.models.resnet import Shape, block_plan, check_sizes

CONVS_PER_BRANCH = 2
SCALARS = {"bias1", "bias2", "bias1a", "bias1b", "bias2a", "bias2b", "scale"}


def _he_fan_out(conv: nn.Conv2d, scale: float = 1.0) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    with torch.no_grad():
        conv.weight.mul_(scale)


def _scalar(value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.full((1,), value))


class FixupBlock(nn.Module):
    """A basic block of a net of `depth` blocks; its branch is zero at initialisation."""

    def __init__(self, before: int, after: int, stride: int, depth: int) -> None:
        super().__init__()
        self.bias1a = _scalar()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bias1b = _scalar()
        self.bias2a = _scalar()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.scale = _scalar(1.0)
        self.bias2b = _scalar()
        self.shortcut: nn.Conv2d | None = None
        _he_fan_out(self.conv1, depth ** (-1 / (2 * CONVS_PER_BRANCH - 2)))
        nn.init.zeros_(self.conv2.weight)
        if stride != 1 or before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            _he_fan_out(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, H, W) to (batch, after, ceil(H / stride), ceil(W / stride))."""
        shifted = x + self.bias1a
        branch = F.relu(self.conv1(shifted) + self.bias1b)
        branch = self.conv2(branch + self.bias2a) * self.scale + self.bias2b
        # The authors' ImageNet form: the shortcut's convolution sees the shifted input, an identity does not.
        return F.relu(branch + (x if self.shortcut is None else self.shortcut(shifted)))


class FixupResNet18(nn.Module):
    """Fixup ResNet18: (batch, *shape) images, shape (channels, height, width), to (batch, classes) logits.

    Blocks and strides are those of `ResNet18`. The classifier starts at zero, so all logits do (a frozen one
    is left as it is). The stem
    keeps PyTorch's own draw, as in the authors' code. EdgewiseError for sizes that make no model.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 64, head: Head = DEFAULT_HEAD) -> None:
        super().__init__()
        check_sizes(shape, classes, width)
        plan = block_plan(shape, width)
        self.conv = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        self.bias1 = _scalar()
        self.blocks = nn.Sequential(*(FixupBlock(*block, depth=len(plan)) for block in plan))
        self.bias2 = _scalar()
        self.classifier = head.layer(plan[-1][1], classes)
        for parameter in self.classifier.parameters():
            if parameter.requires_grad:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, *shape) images to (batch, classes) logits."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """(batch, *shape) images to (batch, 8 * width), what the head sees of them."""
        x = F.relu(self.conv(x) + self.bias1)
        features: Tensor = self.blocks(x).mean((2, 3)) + self.bias2
        return features

    def parameter_kind(self, name: str) -> str | None:
        """Read by `kinds.kind`. The authors train whatever has "bias" or "scale" in its name, the
        classifier's bias too, at a tenth of the base rate: all of it is "scalar"."""
        return "scalar" if name == "classifier.bias" or name.rpartition(".")[2] in SCALARS else None
