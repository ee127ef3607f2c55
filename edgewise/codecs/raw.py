"""No compression: every value as it is, little-endian."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Memory, Payload, Sending, check_length
from edgewise.vector import Layout

ALIGNED = 64  # bytes: as torch aligns what it allocates


@dataclass(frozen=True)
class Raw:
    lossless: ClassVar[bool] = True
    fixed: ClassVar[bool] = True

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = vector.detach().cpu().numpy()
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        if layout.count and _ours(payload):
            return torch.frombuffer(payload, dtype=dtype)
        vector = torch.empty(layout.count, dtype=dtype)
        target = vector.numpy()
        target[:] = np.frombuffer(payload, dtype=target.dtype.newbyteorder("<"))
        return vector

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return layout.count * dtype.itemsize


def _ours(payload: Payload) -> bool:
    """Whether the bytes can be the vector itself: written to by nobody else, and where torch would put them.

    Bytes that are aligned otherwise can change low bits later on.
    """
    if isinstance(payload, bytes) or payload.readonly or sys.byteorder != "little":
        return False
    return np.frombuffer(payload, np.uint8).ctypes.data % ALIGNED == 0
