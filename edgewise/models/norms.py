"""Normalisation as a setting: each norm is a frozen value that makes its layers and names its convolution.

Why it matters here: a batch norm looks at the batch, and on devices with skewed labels the batches differ.
Hsieh et al. 2020 (arXiv 1910.00189) show batch norm collapsing and group norm (Wu and He 2018, arXiv
1803.08494) surviving. The class comments say what each norm's statistics are taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from edgewise.errors import EdgewiseError
from edgewise.models.batchnorms import (
    EPS,
    BatchRenorm2d,
    DeviceBatchNorm2d,
    FrozenBatchNorm2d,
    LocalBatchNorm2d,
    SyncedBatchNorm2d,
)
from edgewise.models.groupnorm import GroupNorm


class Norm(Protocol):
    """What a model needs of a norm. `bias` says whether the convolutions before it need their own."""

    @property
    def conv(self) -> type[nn.Conv2d]: ...
    @property
    def bias(self) -> bool: ...
    def layer(self, channels: int) -> nn.Module:
        """A layer for activations of shape (batch, channels, height, width)."""
        ...


# ---- layers ----


class WSConv2d(nn.Conv2d):
    """Convolution with standardised weights (Qiao et al. 2019, arXiv 1903.10520).

    Each filter gets zero mean and variance 1/fan_in (the scaled form of Brock et al. 2021, arXiv 2101.08692,
    which keeps the variance of what passes through). A fan-in of 1 leaves nothing to standardise: one weight
    minus its mean is zero and the layer would be dead, so it is used as it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H', W')."""
        out: Tensor = self._conv_forward(input, self.standardised(), self.bias)
        return out

    def standardised(self) -> Tensor:
        """The weights that are used, of the shape of `weight`."""
        fan_in = self.weight[0].numel()
        if fan_in == 1:
            return self.weight
        # The eps is on a filter's sum of squares, so that it weighs as much in wide layers as in narrow ones.
        standard = F.layer_norm(self.weight.flatten(1), (fan_in,), eps=EPS / fan_in)
        gain: float = fan_in**-0.5
        return (standard * gain).view_as(self.weight)


def _group_norm(channels: int, groups: int) -> GroupNorm:
    """Group norm with the largest count <= groups that divides `channels` and leaves four channels a group.

    One-channel groups are instance norm, which outputs zeros on a 1x1 map; with two a network did not train
    there either (LOG.md).
    """
    fitting = [g for g in range(1, min(groups, channels // 4) + 1) if channels % g == 0]
    return GroupNorm(max(fitting, default=1), channels, eps=EPS)


# ---- norms ----


@dataclass(frozen=True)
class Batch:
    """Over a device's own batch; its running statistics serve evaluation. Fails on skewed labels."""

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def layer(self, channels: int) -> nn.Module:
        return DeviceBatchNorm2d(channels)


@dataclass(frozen=True)
class BatchSync:
    """Over the batches of all devices of a step."""

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def layer(self, channels: int) -> nn.Module:
        return SyncedBatchNorm2d(channels)


@dataclass(frozen=True)
class BatchLocal:
    """Over a device's own batch; scale, shift and running statistics stay on the device (FedBN).

    Every device then has a model of its own, and accuracy is per device.
    """

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def layer(self, channels: int) -> nn.Module:
        return LocalBatchNorm2d(channels)


@dataclass(frozen=True)
class BatchFrozen:
    """Over a device's own batch; from the share `after` of the run on, what the running statistics are then
    (FixBN).
    """

    after: float = 0.5
    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.after < 1:
            raise EdgewiseError(
                f"norm: batch-frozen:{self.after:g}; legal: a share of the run above 0, below 1"
            )

    def layer(self, channels: int) -> nn.Module:
        return FrozenBatchNorm2d(channels)


@dataclass(frozen=True)
class BatchRenorm:
    """Over a device's own batch, corrected towards the running statistics (Ioffe 2017).

    Bounds of the correction as its paper ends with: `r_max` 1 or more, `d_max` 0 or more; 1 and 0 are
    batch norm.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.r_max >= 1 and self.d_max >= 0):
            raise EdgewiseError(
                f"norm: batch-renorm:{self.r_max:g}:{self.d_max:g}; legal: r_max from 1, d_max from 0"
            )

    def layer(self, channels: int) -> nn.Module:
        return BatchRenorm2d(channels, self.r_max, self.d_max)


@dataclass(frozen=True)
class Group:
    """Over groups of channels of one sample (Wu and He 2018). `groups` is at most how many."""

    groups: int = 32
    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise EdgewiseError(f"norm: groups is {self.groups}; it must be 1 or more")

    def layer(self, channels: int) -> nn.Module:
        return _group_norm(channels, self.groups)


@dataclass(frozen=True)
class GroupWS(Group):
    """Group norm after weight-standardised convolutions (Qiao et al. 2019)."""

    conv: ClassVar[type[nn.Conv2d]] = WSConv2d


@dataclass(frozen=True)
class Layer:
    """Over all channels and places of one sample (Ba et al. 2016, arXiv 1607.06450)."""

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def layer(self, channels: int) -> nn.Module:
        return GroupNorm(1, channels, eps=EPS)


@dataclass(frozen=True)
class Instance:
    """Over the places of one channel of one sample (Ulyanov et al. 2016, arXiv 1607.08022).

    Made of group norm with a group a channel: the same arithmetic, and no running statistics, which would
    bring the batch back into evaluation.
    """

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def layer(self, channels: int) -> nn.Module:
        return GroupNorm(channels, channels, eps=EPS)


@dataclass(frozen=True)
class NoNorm:
    """Nothing. Other norms shift by their own bias; here only the convolution can, so it gets one."""

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = True

    def layer(self, channels: int) -> nn.Module:
        return nn.Identity()


DEFAULT_NORM: Norm = Group()

NORMS: dict[str, type[Any]] = {
    "batch": Batch,
    "batch-sync": BatchSync,
    "batch-local": BatchLocal,
    "batch-renorm": BatchRenorm,
    "batch-frozen": BatchFrozen,
    "group": Group,
    "layer": Layer,
    "instance": Instance,
    "group-ws": GroupWS,
    "none": NoNorm,
}


# ---- what the engines ask of a model ----

UNBROKEN = (SyncedBatchNorm2d, LocalBatchNorm2d, BatchRenorm2d)  # batch norms for which skew is no failure


def set_devices(model: nn.Module, devices: int) -> None:
    """Tell every DeviceBatchNorm2d of how many devices the next batches are made. ValueError below 1."""
    if devices < 1:
        raise ValueError(f"devices is {devices}; a batch comes from 1 device or more")
    for module in model.modules():
        if isinstance(module, DeviceBatchNorm2d):
            module.devices = devices


def device_normed(model: nn.Module) -> list[str]:
    """Names of the norms that train with the statistics of a device's own batch and are evaluated with

    others: what skewed labels break.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, UNBROKEN)
    ]


def batch_coupled(model: nn.Module) -> list[str]:
    """Names of modules that bar one joint batch of all devices: foreign batch norms, active dropout.

    In training, what such a module makes of a sample depends on the other samples, or on its turn in a
    shared random stream. Only modules are seen, not calls such as F.dropout in a forward method. The model
    itself has the name "".
    """
    return [name for name, module in model.named_modules() if _couples(module)]


def _couples(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return not isinstance(module, DeviceBatchNorm2d | SyncedBatchNorm2d)
    return isinstance(module, nn.RReLU) or (isinstance(module, _DropoutNd) and module.p > 0)
