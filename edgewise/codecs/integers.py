"""Integers of 8 or 4 bits with a scale for every 512 values.

    scale = max |x| / 127 (7);  code = x / scale, rounded to the nearest

    payload = one scale a block, fp32 | one signed byte (int8) or nibble (int4, the first one low) a value

The error is at most half a scale and never more than the value itself, and the largest value has none: a
contraction, so error feedback is safe even where one large value sets the rest of its block to zero. The
codes -128 and -8 are never made; decoded, they are what they say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Floats, Memory, Payload, Sending
from edgewise.codecs.blocks import INT8, SMALL, Blocks, Codes
from edgewise.vector import Layout

BLOCK = 512
FOUR_BITS = tuple(range(8)) + tuple(range(-8, 0))  # what the 16 codes stand for
EIGHT, FOUR = Blocks(BLOCK, INT8), Blocks(BLOCK, FOUR_BITS)


@dataclass(frozen=True)
class Int8:
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        return EIGHT.encode(vector, lambda rows, _: nearest(rows, 127)), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        return EIGHT.decode(payload, layout.count, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return EIGHT.bound(layout.count)


@dataclass(frozen=True)
class Int4:
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        return FOUR.encode(vector, lambda rows, _: nearest(rows, 7)), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        return FOUR.decode(payload, layout.count, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return FOUR.bound(layout.count)


def nearest(rows: Floats, top: int) -> tuple[Floats, Codes]:
    """Scales (blocks,) and the nearest of -top to top (blocks, size) as codes in two's complement."""
    most = np.abs(rows).max(axis=1)
    steps = rows * (top / np.maximum(most, SMALL))[:, None]
    np.rint(steps, out=steps)
    return most / np.float32(top), signed(steps, top)


def signed(steps: Floats, top: int) -> Codes:
    """Whole numbers -top to top as codes in two's complement: of as many bits as they need."""
    codes = steps.astype(np.int8).view(np.uint8)
    codes &= np.uint8(2 * top + 1)
    return codes


__all__ = ["FOUR_BITS", "Int4", "Int8", "signed"]
