"""Top-k: the largest magnitudes of the vector travel, the rest is taken to be zero.

Sparse Communication for Distributed Gradient Descent, Aji and Heafield 2017,
https://arxiv.org/abs/1704.05021; Sparsified SGD with Memory, Stich et al. 2018,
https://arxiv.org/abs/1809.07599

    k = round(share * n), at least 1
    payload = indices (Elias-Fano, see indices.py) | values at them, in order

    bits = 32   values: float32
    bits = 16   scale: float32, the largest magnitude | value / scale: float16
    bits = 8    scale | round(127 * value / scale): int8

A contraction: what is left out holds at most 1 - k/n of the squared norm. Selection is exact, and of equal
magnitudes the first are taken, so the payload is a function of the vector alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs import indices
from edgewise.codecs.base import Floats, Memory, Payload, PayloadError, Sending, check_length, floats
from edgewise.codecs.indices import Indices
from edgewise.codecs.select import check_share, count, largest
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

SCALE = 4  # bytes


@dataclass(frozen=True)
class TopK:
    """`share` of the values travel, at `bits` bits each beside their index."""

    share: float = 0.01
    bits: int = 32
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("topk", self.share)
        check_bits("topk", self.bits)

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = floats(vector)
        kept = largest(values, count(self.share, len(values)))
        return indices.encode(kept, len(values)) + write(values[kept], self.bits), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        return spread(*read(payload, count(self.share, layout.count), layout.count, self.bits), layout, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return size(count(self.share, layout.count), layout.count, self.bits)


def check_bits(codec: str, bits: int) -> None:
    """EdgewiseError unless `write` knows this many bits a value."""
    if bits not in (8, 16, 32):
        raise EdgewiseError(f"codec {codec}: bits is {bits}; legal: 8, 16, 32")


def size(k: int, n: int, bits: int) -> int:
    """Bytes of k of n values and their indices."""
    return indices.size(k, n) + k * bits // 8 + (SCALE if bits < 32 else 0)


def write(values: Floats, bits: int) -> bytes:
    """The bytes of finite values (k,), rounded to nearest."""
    if bits == 32:
        return values.astype("<f4").tobytes()
    scale = np.abs(values).max(initial=0.0)
    shares = values / scale if scale else np.zeros_like(values)
    rounded = shares.astype("<f2") if bits == 16 else np.rint(shares * np.float32(127)).astype(np.int8)
    return np.array(scale, "<f4").tobytes() + rounded.tobytes()


def read(payload: bytes | memoryview, k: int, n: int, bits: int) -> tuple[Indices, Floats]:
    """Indices and values (k,) of a payload of `size(k, n, bits)` bytes; PayloadError if it holds none."""
    start = indices.size(k, n)
    content = memoryview(payload)
    return indices.decode(content[:start], k, n), read_values(content[start:], bits)


def read_values(content: bytes | memoryview, bits: int) -> Floats:
    """What `write` wrote; PayloadError for values that it never writes."""
    if bits == 32:
        values = np.frombuffer(content, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise PayloadError("a value is not finite")
        return values
    scale = np.frombuffer(content, "<f4", 1).astype(np.float32)
    kind, unit = ("<f2", 1) if bits == 16 else ("i1", 127)
    with np.errstate(invalid="ignore"):  # NumPy would warn of some NaNs before they are refused
        shares = np.frombuffer(content, kind, offset=SCALE).astype(np.float32) / np.float32(unit)
        if not (0 <= scale < np.inf).all() or not (np.abs(shares) <= 1).all():
            raise PayloadError("a value or its scale is out of range")
    return shares * scale


def spread(kept: Indices, values: Floats, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The vector (P,) that is `values` at the indices `kept`, and zero elsewhere."""
    vector = torch.zeros(layout.count, dtype=dtype)
    vector.numpy()[kept] = values
    return vector
