"""Sparse ternary compression: the places and the signs of the largest magnitudes, and one magnitude for all.

Robust and Communication-Efficient Federated Learning from Non-IID Data, Sattler et al. 2019,
https://arxiv.org/abs/1903.02891

    k = round(share * n), at least 1
    kept = the k largest magnitudes;  mean = the mean of |x| over them
    payload = indices (Elias-Fano, see indices.py) | sign bits, 1 is minus | mean: float32

The squared norm of what is left out is that of x less k * mean^2. (The paper codes the gaps between indices
with a Golomb code; Elias-Fano takes as much space to within a fraction of a bit, and its size is fixed.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs import indices
from edgewise.codecs.base import Memory, Payload, PayloadError, Sending, check_length, floats
from edgewise.codecs.bits import pack, packed_size, unpack
from edgewise.codecs.select import check_share, count, largest
from edgewise.codecs.topk import spread
from edgewise.vector import Layout

MEAN = 4  # bytes


@dataclass(frozen=True)
class STC:
    """`share` of the values travel, as their signs."""

    share: float = 0.01
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("stc", self.share)

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = floats(vector)
        kept = largest(values, count(self.share, len(values)))
        chosen = values[kept]
        mean = np.abs(chosen).mean(dtype=np.float64) if len(chosen) else 0.0
        signs = pack(np.signbit(chosen).view(np.uint8), 1).tobytes()
        return indices.encode(kept, len(values)) + signs + np.array(mean, "<f4").tobytes(), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        n, content = layout.count, memoryview(payload)
        k = count(self.share, n)
        kept = indices.decode(content[: indices.size(k, n)], k, n)
        mean = np.frombuffer(content[-MEAN:], "<f4").astype(np.float32)
        if not (0 <= mean < np.inf).all():
            raise PayloadError("the mean magnitude is out of range")
        minus = unpack(np.frombuffer(content[indices.size(k, n) : -MEAN], np.uint8), 1, k)
        return spread(kept, np.where(minus, -mean, mean), layout, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        k = count(self.share, layout.count)
        return indices.size(k, layout.count) + packed_size(k, 1) + MEAN
