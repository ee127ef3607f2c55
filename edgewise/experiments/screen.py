"""A cheap stand-in for choosing between settings: a ten-layer net on small images, no test image touched.

CIFAR-10 at half its size, 45,000 of the training images to learn from and the other 5,000 to choose by: one
split for every seed. A run of it costs a fifth of one at laptop scale.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import randomness
from edgewise.data import cifar10
from edgewise.data.dataset import Dataset
from edgewise.models.heads import Head
from edgewise.models.norms import Norm
from edgewise.models.resnet import ResNet18, Shape

HELD_BACK = 5_000  # training images to choose by


def data(folder: Path | None = None) -> Dataset:
    """CIFAR-10 at 16x16 pixels, from a folder as for `--data cifar10`; its test set is not used."""
    whole = held_back(folder)
    kept, others = ((halved(part.images), part.labels) for part in (whole.train, whole.test))
    return Dataset.of("cifar10-screen", train=kept, test=others, classes=whole.classes, augment="crop:2,flip")


def held_back(folder: Path | None = None) -> Dataset:
    """CIFAR-10 as it is, with the training images that are held back in place of the test set."""
    whole = cifar10.load(folder)
    order = torch.randperm(len(whole.train), generator=randomness.generator(0, "screen"))
    kept, others = (whole.train.pick(indices) for indices in (order[:-HELD_BACK], order[-HELD_BACK:]))
    return replace(whole, name="cifar10-held-back", train=kept, test=others)


def halved(images: Tensor) -> Tensor:
    """Images as bytes, (N, C, H, W) to (N, C, H / 2, W / 2), each pixel the mean of four."""
    return F.avg_pool2d(images.float(), 2).round().to(torch.uint8)


def net(shape: Shape, classes: int, width: int, norm: Norm, head: Head) -> nn.Module:
    """ResNet18 with one block a stage in place of two: ten layers."""
    return ResNet18(shape, classes, width, norm, head, blocks=1)
