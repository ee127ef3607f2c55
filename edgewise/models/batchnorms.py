"""Batch norm's layers: what they normalise with in training, and whose the running statistics are.

`norms.py` has the settings that make them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.models.kinds import LOCAL

EPS = 1e-5
MOMENTUM = 0.1


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


class FrozenBatchNorm2d(DeviceBatchNorm2d):
    """Batch norm that at some point of training takes its running statistics as they are, as evaluation does:

    FixBN, Zhong et al. 2023, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.
    From then on a sample's output does not depend on its batch, statistics stay, and scale and shift are
    trained as before. The switch is a buffer, `frozen` (1,), 0 or 1, which the coordinator sets: so it comes
    to devices with the state.
    """

    switches: ClassVar[tuple[str, ...]] = ("frozen",)
    frozen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("frozen", torch.zeros(1))

    def forward(self, input: Tensor) -> Tensor:
        """(devices * n, C, H, W) to the same shape."""
        if not self.training or float(self.frozen) < 0.5:  # a mean of ones may be a bit less than 1
            return super().forward(input)
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


class SyncedBatchNorm2d(_UncountedBatchNorm2d):
    """Batch norm over the whole batch, whosever it is. A marker: right only if all devices are in it."""


class LocalBatchNorm2d(_UncountedBatchNorm2d):
    """Batch norm whose scale, shift and running statistics are a device's own (FedBN, Li et al. 2021, arXiv

    2102.07623): the device keeps them, and the coordinator never sees them.
    """

    local_buffers: ClassVar[bool] = True

    def parameter_kind(self, name: str) -> str:
        return LOCAL


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
