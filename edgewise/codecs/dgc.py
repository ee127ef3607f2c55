"""Deep gradient compression: top-k of an accumulated velocity, so that momentum outlives the sparsity.

Deep Gradient Compression, Lin et al. 2018, https://arxiv.org/abs/1712.01887

    u <- momentum * u + g                     velocity, in the gradient's unit
    v <- v + rate * u                         what is owed, in the unit of the steps
    send top-k of v / rate
    v <- v - rate * what was sent;  u <- 0    at the places sent (momentum factor masking)

    payload = k: 4 bytes | indices | values   as in topk.py

The velocity is the device's, so the receiver has no momentum of its own. The share falls exponentially from
a quarter to `share` over the first `warmup` sendings of a device, and k travels because only the device
counts them. With momentum 0 and no warm-up this is top-k with error feedback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edgewise.codecs import indices
from edgewise.codecs.base import Memory, Payload, PayloadError, Sending, check_length, floats
from edgewise.codecs.select import check_share, count, largest
from edgewise.codecs.topk import check_bits, read, read_values, size, spread, write
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

PREFIX = 4  # bytes
START = 0.25  # the share of the first sending
VELOCITY, RESIDUAL, SENDINGS = "velocity", "residual", "sendings"  # of the memory


@dataclass(frozen=True)
class DGC:
    """`share` of the values travel, at `bits` bits each beside their index.

    Error feedback is built in. The memory holds the velocity (P,) (none with momentum 0), the residual (P,)
    and, with a warm-up, the number of sendings so far.
    """

    share: float = 0.001
    warmup: int = 100
    bits: int = 32
    momentum: float = 0.0  # a run puts the server's here, and takes it from the server
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("dgc", self.share)
        check_bits("dgc", self.bits)
        if not 0 <= self.momentum < 1:
            raise EdgewiseError(f"codec dgc: momentum is {self.momentum:g}; legal: 0 or more, below 1")
        if self.warmup < 0:
            raise EdgewiseError(f"codec dgc: warmup is {self.warmup}; legal: 0 or more sendings")

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        velocity = self._velocity(vector.detach().cpu(), memory)
        sendings = int(memory[SENDINGS]) if SENDINGS in memory else 0
        wanted = velocity.clone()
        # A rate of zero applies nothing now, so nothing is owed to this sending.
        if RESIDUAL in memory and sending.rate:
            wanted.add_(memory[RESIDUAL].to(wanted.dtype), alpha=1 / sending.rate)
        values = floats(wanted)
        k = count(self._share(sendings), len(values))
        kept = largest(values, k)
        written = write(values[kept], self.bits)
        payload = k.to_bytes(PREFIX, "little") + indices.encode(kept, len(values)) + written

        after = dict(memory)
        if self.warmup:
            after[SENDINGS] = torch.tensor(sendings + 1)
        if self.momentum:
            after[VELOCITY] = velocity
        if sending.rate:
            places = torch.from_numpy(kept)
            sent = torch.from_numpy(read_values(written, self.bits))
            # What rounding lost stays owed.
            wanted[places] -= sent.to(wanted.dtype)
            after[RESIDUAL] = wanted.mul_(sending.rate)
            if self.momentum:
                velocity[places] = 0
        return payload, after

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        n, content = layout.count, memoryview(payload)
        if len(content) < PREFIX:
            raise PayloadError(f"a payload of {len(content)} bytes where {PREFIX} or more were expected")
        k = int.from_bytes(content[:PREFIX], "little")
        least, most = count(self.share, n), count(self._share(0), n)
        if not least <= k <= most:
            raise PayloadError(f"a payload of {k} values where {least} to {most} were expected")
        check_length(payload, PREFIX + size(k, n, self.bits))
        return spread(*read(content[PREFIX:], k, n, self.bits), layout, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return PREFIX + size(count(self._share(0), layout.count), layout.count, self.bits)

    def _share(self, sendings: int) -> float:
        """The share of the next sending, after so many."""
        if sendings >= self.warmup:
            return self.share
        return max(self.share, START * (self.share / START) ** (sendings / self.warmup))

    def _velocity(self, vector: Tensor, memory: Memory) -> Tensor:
        """The velocity after the vector is added, in memory of its own unless there is no momentum."""
        if not self.momentum:
            return vector
        if VELOCITY not in memory:
            return vector.clone()
        return vector.add(memory[VELOCITY].to(vector.dtype), alpha=self.momentum)
