"""Group norm that can take what follows it, an addition and a ReLU, into one pass over memory.

PyTorch has a kernel for the norm, one for the sum and one for the ReLU: up to twice as slow on a CPU, in bf16
four to seven times (benchmarks/norms.py). `compile_norms` makes a model's norms use
`edgewise/models/kernels.py` instead; until then, and wherever that does not fit, they are PyTorch's.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edgewise.models.batchnorms import EPS

ROW = 128  # values of a row: places stand side by side until there are so many
DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}


class GroupNorm(nn.GroupNorm):
    """PyTorch's, of the same parameters and in a model's text the same."""

    compiled = False

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, H, W) to the same shape."""
        if self.compiled and self._fits(input):
            return _apply(self, input, None, False)
        return super().forward(input)

    def activated(self, input: Tensor, added: Tensor | None) -> Tensor | None:
        """relu(self(input) + added) in one pass; None where that cannot be, or hooks wait for the norm."""
        hooked = self._forward_hooks or self._forward_pre_hooks
        hooked = hooked or self._backward_hooks or self._backward_pre_hooks
        if not self.compiled or hooked or not self._fits(input):
            return None
        if added is not None and (added.dtype, added.shape) != (input.dtype, input.shape):
            return None
        return _apply(self, input, added, True)

    def _fits(self, input: Tensor) -> bool:
        weight = self._parameters["weight"]  # `self.weight` is slow, and this is asked at every call
        return (
            weight is not None
            and input.is_cpu
            and input.dim() == 4
            and input.numel() > 0
            and DTYPES.get(input.dtype) == weight.dtype
        )


def relu(norm: nn.Module, input: Tensor, added: Tensor | None = None) -> Tensor:
    """relu(norm(input)), or relu(norm(input) + added), in one pass where the norm is compiled."""
    if isinstance(norm, GroupNorm) and (out := norm.activated(input, added)) is not None:
        return out
    out = norm(input)
    return F.relu(out if added is None else out + added)


def compile_norms(module: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Make the group norms of a model, in place, the compiled ones; how many there are.

    They are compiled now, for activations of `dtype`; for others at their first call. ImportError without
    Numba. They take no second derivative and cannot be mapped by torch.func.
    """
    norms = [part for part in module.modules() if isinstance(part, GroupNorm) and part.weight is not None]
    if norms:
        _prepare(dtype)
    for norm in norms:
        norm.compiled = True
    return len(norms)


def available() -> bool:
    """Whether Numba is there and can be imported, which takes a while."""
    try:
        from edgewise.models import kernels  # noqa: F401
    except ImportError:
        return False
    return True


def _prepare(dtype: torch.dtype) -> None:
    """Compile, or read what an earlier process has compiled, with a call of everything."""
    from edgewise.models import kernels

    try:
        _try(dtype)
    except Exception:  # a full disk, a file cut short (its reader raises anything): once more without files
        kernels.KEPT = False
        importlib.reload(kernels)
        _try(dtype)


def _try(dtype: torch.dtype) -> None:
    from edgewise.models import kernels

    rows = _rows(torch.zeros(1, 1, 1, 1, dtype=dtype))
    norm = (torch.ones(1, dtype=DTYPES[dtype]).numpy(),) * 2
    made = (torch.zeros(1, 1, dtype=torch.float64).numpy(),) * 2
    into = (torch.zeros(1, dtype=torch.float64).numpy(),) * 2
    kernels.normalise(rows, rows, rows, norm, made, (EPS, kernels.PLAIN))
    kernels.differentiate((rows, rows), (rows, rows, rows), norm, made, into, kernels.PLAIN)


def _apply(norm: nn.GroupNorm, input: Tensor, added: Tensor | None, rectified: bool) -> Tensor:
    # Of images with one channel a convolution cannot tell how they lie, and what it makes may lie otherwise.
    x = input.contiguous(memory_format=torch.channels_last)
    more = None if added is None else added.contiguous(memory_format=torch.channels_last)
    out: Tensor = _Norm.apply(x, norm.weight, norm.bias, more, (norm.num_groups, norm.eps, rectified))
    return out


def _rows(x: Tensor) -> Any:
    """A numpy view (N, P / R, R * C) of (N, C, H, W) that is channels last."""
    n, c, h, w = x.shape
    side = 1
    while side * c < ROW and h * w % (2 * side) == 0:
        side *= 2
    wide = side * c
    rows = x.detach().as_strided((n, h * w // side, wide), (h * w * c, wide, 1))
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        how: tuple[int, float, bool],
    ) -> Tensor:
        from edgewise.models import kernels

        groups, eps, rectified = how
        then = kernels.PLAIN if not rectified else kernels.RELU if added is None else kernels.ADDED
        y = torch.empty_like(x)
        made = torch.empty(2, len(x), groups, dtype=torch.float64)
        norm = (weight.detach().numpy(), bias.detach().numpy())
        rows = _rows(x)
        more = rows if added is None else _rows(added)
        kernels.normalise(rows, more, _rows(y), norm, (made[0].numpy(), made[1].numpy()), (eps, then))
        # y is there for what comes next anyway; without an addition it is not read again.
        ctx.save_for_backward(x, y if then == kernels.ADDED else x, weight, bias, made)
        ctx.then = then
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        from edgewise.models import kernels

        x, y, weight, bias, made = ctx.saved_tensors
        of_y = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x = torch.empty_like(x)
        of_added = torch.empty_like(x) if ctx.then == kernels.ADDED else None
        into = torch.zeros(2, len(weight), dtype=torch.float64)
        kernels.differentiate(
            (_rows(x), _rows(y)),
            (_rows(of_y), _rows(of_x), _rows(of_x if of_added is None else of_added)),
            (weight.detach().numpy(), bias.detach().numpy()),
            (made[0].numpy(), made[1].numpy()),
            (into[0].numpy(), into[1].numpy()),
            ctx.then,
        )
        of_weight, of_bias = into.to(weight.dtype)
        return of_x, of_weight, of_bias, of_added, None
