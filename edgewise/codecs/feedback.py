"""Error feedback around any codec: what a payload loses is added to the next update.

1-Bit Stochastic Gradient Descent, Seide et al. 2014; Error Feedback Fixes SignSGD, Karimireddy et al. 2019,
https://arxiv.org/abs/1901.09847

    p = update + residual / rate;  send encode(p);  residual <- rate * (p - decode(encode(p)))

So the decoded updates add up to the true ones, less one last residual. With a learning rate that changes
(synchronous SGD sends gradients, which the server multiplies by it), it is the steps that must add up: the
residual is kept in their unit. That is exact for a server without momentum; one with momentum applies an
update at later rates too, so what is owed is weighed by the rate of its sending.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgewise.codecs.base import Codec, Memory, NotFinite, Payload, Sending
from edgewise.vector import Layout

RESIDUAL = "residual"


@dataclass(frozen=True)
class Feedback:
    codec: Codec

    @property
    def lossless(self) -> bool:
        return self.codec.lossless

    @property
    def fixed(self) -> bool:
        return self.codec.fixed

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        inner = {name: tensor for name, tensor in memory.items() if name != RESIDUAL}
        wanted = vector.detach().cpu()
        if RESIDUAL in memory:
            # A rate of zero applies nothing now, so nothing is owed to this sending.
            share = 1 / sending.rate if sending.rate else 0.0
            wanted = wanted.add(memory[RESIDUAL].to(wanted.dtype), alpha=share)
        payload, inner_next = self.codec.encode(wanted, layout, inner, replace(sending, fed=True))
        if sending.rate == 0:
            return payload, {**memory, **inner_next}
        residual = wanted.sub(self.codec.decode(payload, layout, wanted.dtype))
        if sending.rate != 1:
            residual.mul_(sending.rate)
        if len(residual) and not all(map(math.isfinite, residual.aminmax())):
            raise NotFinite  # an update near the largest number there is
        return payload, {**inner_next, RESIDUAL: residual}

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        return self.codec.decode(payload, layout, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return self.codec.bound(layout, dtype)
