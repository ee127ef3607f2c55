"""Normalisation as a setting: each norm is a frozen value that makes its layers and names its convolution.

Why it matters here: a batch norm looks at the batch, and on devices with skewed labels the batches differ.
Hsieh et al. 2020 (arXiv 1910.00189) show batch norm collapsing and group norm (Wu and He 2018, arXiv
1803.08494) surviving. The class comments say what each norm's statistics are taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from edgewise.errors import EdgewiseError

EPS = 1e-5
MOMENTUM = 0.1


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


class _UncountedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d without `num_batches_tracked`: with a fixed momentum nothing reads it, and an integer
    counter has no place in a vector of floats that travels between machines."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS, momentum=MOMENTUM)
        del self.num_batches_tracked
        self.num_batches_tracked = None

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        # A plain dict (from safetensors) has no version; PyTorch would then add the counter and reject it.
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": self._version}, *rest)


class DeviceBatchNorm2d(_UncountedBatchNorm2d):
    """Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167) of `devices` devices, batches end to end.

    In training, slice d of a (devices * n, C, H, W) batch is normalised with its own mean and biased
    variance. The running statistics become the mean over devices of what each device's own BatchNorm2d
    would hold after this batch. With one device, and in eval mode, this is nn.BatchNorm2d. `devices` is no
    state: it describes the batch that comes next. ValueError when the batch does not divide by `devices`.
    """

    devices: int = 1

    def forward(self, input: Tensor) -> Tensor:
        """(devices * n, C, H, W) to the same shape."""
        if self.devices == 1 or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if len(input) == 0 or len(input) % self.devices:
            raise ValueError(
                f"a batch of {len(input)} does not divide into {self.devices} equal device batches"
            )
        return self._by_device(input)

    def _by_device(self, input: Tensor) -> Tensor:
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None and running_var is not None
        # With momentum 1 a row receives exactly its slice's mean and n/(n-1) variance.
        means = running_mean.new_zeros(self.devices, self.num_features)
        variances = torch.zeros_like(means)
        # One batch_norm call a slice: PyTorch's kernel on a slice that fits the cache beats a grouped
        # reduction 3 to 5 times, and is within a tenth of a hand-written autograd function.
        slices = zip(input.chunk(self.devices), means, variances, strict=True)
        normed = [F.batch_norm(x, m, v, self.weight, self.bias, True, 1.0, self.eps) for x, m, v in slices]
        # The update is affine in the batch statistics, so the mean of the updates is the update by the mean.
        running_mean.lerp_(means.mean(0), MOMENTUM)
        running_var.lerp_(variances.mean(0), MOMENTUM)
        return torch.cat(normed)


class SyncedBatchNorm2d(_UncountedBatchNorm2d):
    """Batch norm over the whole batch, whosever it is. A marker: right only if all devices are in it."""


class BatchRenorm2d(_UncountedBatchNorm2d):
    """Batch renormalisation (Ioffe 2017, arXiv 1702.03275): batch norm pulled back to the running statistics.

    In training a batch's own normalisation is corrected by r = std / running std, kept within 1/r_max ..
    r_max, and d = (mean - running mean) / running std, kept within -d_max .. d_max; no gradient passes
    through either. Within those bounds training computes what evaluation will. In eval mode this is
    nn.BatchNorm2d. Takes activations (batch, channels, ...) of any number of dimensions.
    """

    def __init__(self, channels: int, r_max: float, d_max: float) -> None:
        super().__init__(channels)
        self.r_max, self.d_max = r_max, d_max

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch renorm takes (batch, channels, ...), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, ...) to the same shape."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None and running_var is not None
        with torch.no_grad():
            over = [0, *range(2, input.dim())]
            variance, mean = torch.var_mean(input, over, correction=0)
            spread = (running_var + self.eps).sqrt()
            r = ((variance + self.eps).sqrt() / spread).clamp(1 / self.r_max, self.r_max)
            d = ((mean - running_mean) / spread).clamp(-self.d_max, self.d_max)
            count = input.numel() // input.shape[1]
            momentum = MOMENTUM if self.momentum is None else self.momentum
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)
        gain = r if self.weight is None else self.weight * r
        shift = d if self.weight is None else self.weight * d + self.bias
        return F.batch_norm(input, None, None, gain, shift, True, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r_max={self.r_max:g}, d_max={self.d_max:g}"


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


def _group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group norm with the largest count <= groups that divides `channels` and leaves four channels a group.

    One-channel groups are instance norm, which outputs zeros on a 1x1 map; with two a network did not train
    there either (LOG.md).
    """
    fitting = [g for g in range(1, min(groups, channels // 4) + 1) if channels % g == 0]
    return nn.GroupNorm(max(fitting, default=1), channels, eps=EPS)


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
        return nn.GroupNorm(1, channels, eps=EPS)


@dataclass(frozen=True)
class Instance:
    """Over the places of one channel of one sample (Ulyanov et al. 2016, arXiv 1607.08022).

    Made of group norm with a group a channel: the same arithmetic, and no running statistics, which would
    bring the batch back into evaluation.
    """

    conv: ClassVar[type[nn.Conv2d]] = nn.Conv2d
    bias: ClassVar[bool] = False

    def layer(self, channels: int) -> nn.Module:
        return nn.GroupNorm(channels, channels, eps=EPS)


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
    "batch-renorm": BatchRenorm,
    "group": Group,
    "layer": Layer,
    "instance": Instance,
    "group-ws": GroupWS,
    "none": NoNorm,
}


# ---- what the engines ask of a model ----


def set_devices(model: nn.Module, devices: int) -> None:
    """Tell every DeviceBatchNorm2d of how many devices the next batches are made. ValueError below 1."""
    if devices < 1:
        raise ValueError(f"devices is {devices}; a batch comes from 1 device or more")
    for module in model.modules():
        if isinstance(module, DeviceBatchNorm2d):
            module.devices = devices


def device_normed(model: nn.Module) -> list[str]:
    """Names of the norms whose statistics are a device's own batch's: what skewed labels break."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncedBatchNorm2d | BatchRenorm2d)
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
