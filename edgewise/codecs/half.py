"""Half of the bytes: every value rounded to the nearest fp16 or bf16.

    payload = two bytes a value, little-endian

fp16 has 11 significant bits from 6e-5 to 65,504 and fewer below, down to 6e-8; bf16 has 8 over the range of
fp32. A value beyond the range becomes the end of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Memory, NotFinite, Payload, PayloadError, Sending, check_length
from edgewise.vector import Layout

CHUNK = 1 << 16


@dataclass(frozen=True)
class Half:
    bf16: bool = False
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float16

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = vector.detach().to("cpu", torch.float32)
        if not finite(values):
            raise NotFinite
        top = torch.finfo(self._dtype).max
        halves = torch.empty(len(values), dtype=self._dtype)
        for start in range(0, len(values), CHUNK):  # what is clamped stays in the processor's cache
            part = values[start : start + CHUNK].clamp(-top, top)
            halves[start : start + CHUNK] = part
        return halves.view(torch.int16).numpy().astype("<i2", copy=False).tobytes(), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        halves = torch.empty(layout.count, dtype=torch.int16)
        halves.numpy()[:] = np.frombuffer(payload, "<i2")
        vector = halves.view(self._dtype).to(dtype)
        if not finite(vector):
            raise PayloadError("a payload with values that are not finite")
        return vector

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return 2 * layout.count


def finite(vector: Tensor) -> bool:
    """Whether all values are; almost always one sum tells."""
    return bool(torch.isfinite(vector.sum())) or bool(torch.isfinite(vector).all())


__all__ = ["Half"]
