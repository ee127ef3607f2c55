"""The interface of a codec. Both ends know the layout, so neither names nor shapes travel."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Memory = Any


class Codec(Protocol):
    lossless: ClassVar[bool]

    def start(self) -> Memory:
        """Memory of a device that has sent nothing yet."""
        ...

    def encode(self, vector: Tensor, memory: Memory) -> tuple[bytes, Memory]:
        """The payload that stands for `vector` (P,), and the next memory. The vector is left as it is."""
        ...

    def decode(self, payload: bytes, count: int, dtype: torch.dtype) -> Tensor:
        """The vector (count,) that a payload stands for; ValueError if the payload cannot be one."""
        ...
