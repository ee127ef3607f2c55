"""Every value as -1, 0 or 1 times a scale of its block of 1,280: five values a byte, 1.6 bits each.

Inside error feedback, the large values only, by what ternary weight networks do with weights:
Ternary Weight Networks, Li and Liu 2016, https://arxiv.org/abs/1605.04711

    keep = |x| > 0.7 mean |x|;  scale = mean of |x| where kept;  t = sign(x) where kept, else 0

the scale is the best one for what is kept, so that it is a contraction. Without error feedback, at random:
TernGrad, Wen et al. 2017, https://arxiv.org/abs/1705.07878

    scale = max |x|;  t = sign(x) with probability |x| / scale, else 0

which is unbiased, with a variance of |x| (scale - |x|) a value.

    payload = one scale a block, fp32 | five trits a byte (0, 1, 2 for 0, 1, -1), the first one lowest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.codecs.base import Floats, Memory, Payload, Sending
from edgewise.codecs.blocks import SMALL, Blocks, Codes
from edgewise.codecs.uniform import Uniform
from edgewise.vector import Layout

FORM = Blocks(1280, (0, 1, -1))
CUT = 0.7


@dataclass(frozen=True)
class Ternary:
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        if sending.fed:
            return FORM.encode(vector, large), memory
        uniform = Uniform(sending.key)
        return FORM.encode(vector, lambda rows, _: drawn(rows, uniform)), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        return FORM.decode(payload, layout.count, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return FORM.bound(layout.count)


def large(rows: Floats, length: int) -> tuple[Floats, Codes]:
    sizes = np.abs(rows)
    cuts = sizes.sum(axis=1, keepdims=True) * np.float32(CUT / length)
    kept = sizes > cuts
    sizes *= kept
    number = kept.view(np.uint8).sum(axis=1, dtype=np.uint16)
    return sizes.sum(axis=1) / number.astype(np.float32), trits(rows, kept)


def drawn(rows: Floats, uniform: Uniform) -> tuple[Floats, Codes]:
    sizes = np.abs(rows)
    scales = sizes.max(axis=1)
    sizes *= 1 / np.maximum(scales, SMALL)[:, None]
    return scales, trits(rows, sizes > uniform.rows(rows.shape))


def trits(rows: Floats, kept: NDArray[np.bool_]) -> Codes:
    """1 where a value is kept, 2 where it is negative too, else 0."""
    codes = kept & (rows < 0)
    return np.add(codes.view(np.uint8), kept.view(np.uint8))


__all__ = ["Ternary"]
