"""QSGD: values rounded up or down at random, so that on average nothing is lost. Here 2, 4 or 8 bits each.

QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, Alistarh et al. 2017,
https://arxiv.org/abs/1610.02132

    s = 2^(bits - 1) - 1 levels;  scale = max |x| / s of a bucket of 256
    code = floor(x / scale + u), u uniform in [0, 1)

    payload = one scale a bucket, fp32 | signed codes in two's complement, the first one low

The paper divides by the 2-norm of the bucket; the largest value instead has a smaller error. The variance
E||Q(x) - x||^2 is at most w ||x||^2, where

    w = (sqrt(1 + c^2) - 1) / 2,  c = sqrt(256) / s

In units of the scale, a value with the fraction f adds f (1 - f), the largest one nothing, and ||x||^2 is
at least s^2 + sum f^2. So the worst bucket has 255 values of one f, and with a = s^2 / 256 = 1 / c^2 the most
that f (1 - f) / (a + f^2) can be, at f = sqrt(a^2 + a) - a, is w: 7.5 for 2 bits, 0.75 for 4, 0.004 for 8.

Error feedback needs a contraction. Where w >= 1 the scale that is sent inside it is divided by 1 + w: then
E||Q(x) / (1 + w) - x||^2 <= w / (1 + w) ||x||^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Floats, Memory, Payload, Sending
from edgewise.codecs.blocks import INT8, SMALL, Blocks, Codes
from edgewise.codecs.integers import FOUR_BITS, signed
from edgewise.codecs.uniform import Uniform
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

BUCKET = 256
FORMS = {2: Blocks(BUCKET, (0, 1, -2, -1)), 4: Blocks(BUCKET, FOUR_BITS), 8: Blocks(BUCKET, INT8)}


@dataclass(frozen=True)
class QSGD:
    bits: int = 4
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in FORMS:
            raise EdgewiseError(f"codec qsgd: bits is {self.bits}; legal: 2, 4, 8")

    @property
    def levels(self) -> int:
        """How many there are on each side of zero."""
        return 2 ** (self.bits - 1) - 1

    @property
    def variance(self) -> float:
        """The worst share of ||x||^2 that E||Q(x) - x||^2 can be."""
        return (math.sqrt(1 + BUCKET / self.levels**2) - 1) / 2

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        uniform = Uniform(sending.key)
        shrink = 1 / (1 + self.variance) if sending.fed and self.variance >= 1 else 1.0

        def quantise(rows: Floats, length: int) -> tuple[Floats, Codes]:
            scales, codes = rounded(rows, self.levels, uniform)
            return scales * np.float32(shrink), codes

        return FORMS[self.bits].encode(vector, quantise), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        return FORMS[self.bits].decode(payload, layout.count, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return FORMS[self.bits].bound(layout.count)


def rounded(rows: Floats, top: int, uniform: Uniform) -> tuple[Floats, Codes]:
    """Scales (blocks,) and codes (blocks, size) of values rounded at random to -top ... top."""
    most = np.abs(rows).max(axis=1)
    steps = rows * (top / np.maximum(most, SMALL))[:, None]
    steps += uniform.rows(rows.shape)
    np.floor(steps, out=steps)
    np.clip(steps, -top, top, out=steps)  # fp32 may have rounded the largest values past the end
    return most / np.float32(top), signed(steps, top)


__all__ = ["QSGD"]
