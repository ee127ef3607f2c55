"""No compression: every value as it is, little-endian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Memory


@dataclass(frozen=True)
class Raw:
    lossless: ClassVar[bool] = True

    def start(self) -> Memory:
        return None

    def encode(self, vector: Tensor, memory: Memory) -> tuple[bytes, Memory]:
        values = vector.detach().cpu().numpy()
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(), memory

    def decode(self, payload: bytes, count: int, dtype: torch.dtype) -> Tensor:
        # Copied into memory that torch allocates: unaligned bytes can change low bits later on.
        vector = torch.empty(count, dtype=dtype)
        expected = count * vector.element_size()
        if len(payload) != expected:
            raise ValueError(f"a payload of {len(payload)} bytes where {expected} were expected")
        target = vector.numpy()
        target[:] = np.frombuffer(payload, dtype=target.dtype.newbyteorder("<"))
        return vector
