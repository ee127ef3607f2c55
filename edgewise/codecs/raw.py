"""No compression: every value as it is, little-endian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Memory, Sending, check_length
from edgewise.vector import Layout


@dataclass(frozen=True)
class Raw:
    lossless: ClassVar[bool] = True
    fixed: ClassVar[bool] = True

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = vector.detach().cpu().numpy()
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(), memory

    def decode(self, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        # Copied into memory that torch allocates: unaligned bytes can change low bits later on.
        vector = torch.empty(layout.count, dtype=dtype)
        target = vector.numpy()
        target[:] = np.frombuffer(payload, dtype=target.dtype.newbyteorder("<"))
        return vector

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return layout.count * dtype.itemsize
