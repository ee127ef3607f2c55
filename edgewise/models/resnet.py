"""ResNet18 (He et al. 2016, arXiv 1512.03385) in its form for small images, with the norm as a setting."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from edgewise.errors import EdgewiseError
from edgewise.models.groupnorm import relu
from edgewise.models.heads import DEFAULT_HEAD, Head
from edgewise.models.norms import DEFAULT_NORM, Norm

Shape = tuple[int, int, int]
STAGES = 4
BLOCKS_PER_STAGE = 2


def check_sizes(shape: Shape, classes: int, width: int) -> None:
    """EdgewiseError unless shape (channels, height, width), classes and model width make a model."""
    channels, height, breadth = shape
    if channels < 1 or min(height, breadth) < 2:
        raise EdgewiseError(
            f"model: an input of shape {shape}; it needs 1 channel or more and at least 2x2 pixels"
        )
    if classes < 1:
        raise EdgewiseError(f"model: {classes} classes; it needs 1 or more")
    if width < 1:
        raise EdgewiseError(f"model: width is {width}; it must be 1 or more")


def block_plan(shape: Shape, width: int, blocks: int = BLOCKS_PER_STAGE) -> list[tuple[int, int, int]]:
    """(in channels, out channels, stride) of the blocks for images of shape (channels, height, width).

    Stages after the first halve the map, but only while at least 2x2 remain: on a 1x1 map instance norm
    subtracts each value from itself.
    """
    side = min(shape[1:])
    plan: list[tuple[int, int, int]] = []
    widths = [width, *(width * 2**stage for stage in range(STAGES))]
    for stage, (before, after) in enumerate(pairwise(widths)):
        stride = 2 if stage > 0 and (side + 1) // 2 >= 2 else 1
        side = (side + stride - 1) // stride
        plan.append((before, after, stride))
        plan += [(after, after, 1)] * (blocks - 1)
    return plan


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution with norm where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = norm.conv(before, after, 3, stride, padding=1, bias=norm.bias)
        self.norm1 = norm.layer(after)
        self.conv2 = norm.conv(after, after, 3, padding=1, bias=norm.bias)
        self.norm2 = norm.layer(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                norm.conv(before, after, 1, stride, bias=norm.bias), norm.layer(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, H, W) to (batch, after, ceil(H / stride), ceil(W / stride))."""
        branch = relu(self.norm1, self.conv1(x))
        return relu(self.norm2, self.conv2(branch), self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet18 for images of shape (channels, height, width): (batch, *shape) to (batch, classes) logits.

    A 3x3 stem of stride 1 without pooling, four stages of two blocks of `width` x (1, 2, 4, 8) channels,
    global average pooling and a head, linear unless given. 11,173,962 parameters at width 64 for 3x32x32 and
    10 classes with batch norm. Other `blocks` a stage make a net of 2 + 8 * blocks layers. EdgewiseError for
    sizes that make no model.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        width: int = 64,
        norm: Norm = DEFAULT_NORM,
        head: Head = DEFAULT_HEAD,
        blocks: int = BLOCKS_PER_STAGE,
    ) -> None:
        super().__init__()
        check_sizes(shape, classes, width)
        plan = block_plan(shape, width, blocks)
        self.conv = norm.conv(shape[0], width, 3, padding=1, bias=norm.bias)
        self.norm = norm.layer(width)
        self.blocks = nn.Sequential(*(BasicBlock(*block, norm) for block in plan))
        self.classifier = head.layer(plan[-1][1], classes)
        self._draw()

    def _draw(self) -> None:
        # He et al. 2015 (arXiv 1502.01852), fan-out: keeps the variance of gradients through ReLUs. The
        # classifier has no ReLU after it: it keeps PyTorch's small uniform draw and starts near equal odds.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, *shape) images to (batch, classes) logits."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """(batch, *shape) images to (batch, 8 * width), what the head sees of them."""
        x = relu(self.norm, self.conv(x))
        features: Tensor = self.blocks(x).mean((2, 3))
        return features
