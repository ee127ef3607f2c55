"""The interface of a codec. Both ends know the layout, so neither names nor shapes travel.

    payload, memory = codec.encode(vector, layout, memory, sending)      on the side that sends
    vector = codec.decode(payload, layout, dtype)                        on the side that receives

Whatever `encode` may lose is decided there; `decode` is a function of the payload and the layout alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

Memory = Mapping[str, Tensor]  # what a codec remembers from one sending to the next; {} at the start
Floats = NDArray[np.float32]
Payload = bytes | memoryview


class PayloadError(EdgewiseError, ValueError):
    """Bytes that cannot be a payload of this codec and layout."""


class NotFinite(EdgewiseError, ValueError):
    """A vector with NaN or infinity, which no lossy codec can stand for."""

    def __init__(self) -> None:
        super().__init__("the update is not finite")


@dataclass(frozen=True)
class Sending:
    """The circumstances of one sending.

    `key`: of the random draws, one for every (seed, device, round). `rate`: the share of the peak learning
    rate at which the receiver will apply the vector (1 where the vector holds the rate already): what is
    left unsent is remembered times this rate, because the next sending may be applied at another one.
    `fed`: what this payload loses comes back with the next, so a small error beats an unbiased one.
    """

    key: int = 0
    rate: float = 1.0
    fed: bool = False


class Codec(Protocol):
    """Frozen dataclasses: the fields are the settings, what changes goes in and comes out as `memory`.

    `lossless`: decode(encode(x)) is x, bit for bit. `fixed`: every payload is `bound` bytes long.
    """

    @property
    def lossless(self) -> bool: ...

    @property
    def fixed(self) -> bool: ...

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        """The payload that stands for `vector` (P,), and the next memory; both inputs are left as they are.

        NotFinite where a codec that loses something meets NaN or infinity; a lossless one sends them.
        """
        ...

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        """The vector (P,) that a payload stands for, in memory of its own, on the CPU.

        A payload that is a view of writable memory may become that memory: whoever lets it go, lets it go.
        PayloadError if the payload cannot be one; what a lossy codec decodes is finite. Whatever the
        bytes, less memory is taken than eight such vectors and eight times `bound`.
        """
        ...

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        """The length of the longest payload there is, in bytes."""
        ...


def floats(vector: Tensor) -> Floats:
    """The vector's values as float32 in memory of this machine's order; a view where that is possible."""
    return np.ascontiguousarray(vector.detach().to("cpu", torch.float32).numpy())


def check_length(payload: bytes | memoryview, expected: int) -> None:
    """PayloadError unless the payload is `expected` bytes long."""
    if len(payload) != expected:
        raise PayloadError(f"a payload of {len(payload)} bytes where {expected} were expected")


__all__ = ["Codec", "Floats", "Memory", "NotFinite", "PayloadError", "Sending", "check_length", "floats"]
