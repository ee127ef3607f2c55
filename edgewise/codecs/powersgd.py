"""PowerSGD: every matrix as the product of two thin ones.

PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization, Vogels et al. 2019,
https://arxiv.org/abs/1905.13727

    M (n, m): a parameter's stretch of the vector, its first dimension times the rest
    P = orthonormalise(M Q);  Q = M^T P;  send P, Q;  decode P Q^T
    Q, its columns of norm 1, is where the next round starts: one step of subspace iteration a round;
    a thousandth of the first Q is added, so that no direction is lost for good (not in the paper)

    payload = for every matrix, in the layout's order: P (n, rank), Q (m, rank), by rows; then the values of
              all other parameters: those of one dimension, and matrices with rank * (n + m) >= n * m
    bits 32: float32.  bits 16, 8: each P, each Q and the rest as one float32 scale, then float16 or int8

One-way: each device sends its own P and Q. In the paper the devices average P before they compute Q, which
takes a second exchange a round. All devices start with the same Q, drawn from the parameter's name.

P Q^T = P P^T M is an orthogonal projection of M, so the error is never longer than the vector. What the
subspace misses is missed every time, so the codec is biased, with error feedback around it or without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import (
    Floats,
    Memory,
    NotFinite,
    Payload,
    PayloadError,
    Sending,
    check_length,
    floats,
)
from edgewise.codecs.subspace import (
    LARGEST,
    LOWEST_EXPONENT,
    WARM,
    factors,
    first,
    largest,
    restart,
    sides,
)
from edgewise.errors import EdgewiseError
from edgewise.vector import Entry, Layout

HALF_TOP = 2.0**15 - 16  # the float16 before 2^15: 2^15 times the largest scale would be infinite
BYTE_TOP = LARGEST * (1 - 1e-6)  # 127 times a scale that was rounded up would be infinite


@dataclass(frozen=True)
class PowerSGD:
    """`rank`: columns of P and Q; `bits`: of each number sent, 32, 16 or 8.

    With fewer bits P and Q are rounded to nearest, so the product is the projection only nearly.

    Raises NotFinite also where a matrix is so near the largest float32 that its product could overflow.
    """

    rank: int = 4
    bits: int = 32
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.bits not in (8, 16, 32):
            raise EdgewiseError(
                f"codec powersgd:{self.rank}:{self.bits}: legal: a rank from 1, and 32, 16 or 8 bits"
            )

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = floats(vector)
        matrices, others = self._parts(layout)
        parts, following, start = [], [], 0
        for entry in matrices:
            begin = first(entry, self.rank)
            stop = start + begin.numel()
            # Copied: the last bits of a product may depend on how its operands are aligned.
            q = memory[WARM][start:stop].clone().view_as(begin) if WARM in memory else begin
            matrix = torch.from_numpy(values[entry.start : entry.stop].reshape(sides(entry)))
            p, q, scale = factors(matrix, q)
            following.append(restart(q, begin).flatten())
            parts += [p.numpy(), (q * scale).numpy()]
            start = stop
        parts.append(np.concatenate([values[:0], *(values[e.start : e.stop] for e in others)]))
        payload = b"".join(_write(part.reshape(-1), self.bits) for part in parts)
        return payload, {WARM: torch.cat(following)} if following else {}

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        vector = torch.empty(layout.count, dtype=dtype)
        matrices, others = self._parts(layout)
        start = 0
        for entry in matrices:
            rows, columns = sides(entry)
            p, start = _read(payload, start, rows * self.rank, self.bits)
            q, start = _read(payload, start, columns * self.rank, self.bits)
            if not largest(p) * largest(q) * self.rank < LARGEST:
                raise PayloadError("a payload of matrices whose product may not be finite")
            left, right = p.view(rows, self.rank).to(dtype), q.view(columns, self.rank).to(dtype)
            torch.mm(left, right.T, out=vector[entry.start : entry.stop].view(rows, columns))
        sizes = [entry.stop - entry.start for entry in others]
        rest, _ = _read(payload, start, sum(sizes), self.bits)
        for entry, part in zip(others, rest.split(sizes), strict=True):
            vector[entry.start : entry.stop] = part
        return vector

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        matrices, others = self._parts(layout)
        together = sum(sum(sides(entry)) for entry in matrices)
        numbers = self.rank * together + sum(entry.stop - entry.start for entry in others)
        scales = 2 * len(matrices) + 1 if self.bits < 32 else 0
        return numbers * self.bits // 8 + 4 * scales

    def _parts(self, layout: Layout) -> tuple[list[Entry], list[Entry]]:
        """The parameters that are sent as two factors, and the others."""
        small = [self.rank * sum(sides(entry)) < math.prod(sides(entry)) for entry in layout.params]
        pairs = list(zip(layout.params, small, strict=True))
        return [entry for entry, yes in pairs if yes], [entry for entry, yes in pairs if not yes]


def _write(part: Floats, bits: int) -> bytes:
    """The bytes of some numbers; NotFinite if one is not."""
    top = largest(torch.from_numpy(part))
    if not math.isfinite(top):
        raise NotFinite
    if bits == 32:
        return part.astype("<f4", copy=False).tobytes()
    if bits == 8:
        scale = np.float32(min(top, BYTE_TOP) / 127)
        sent = np.rint(part / scale if scale else part).clip(-127, 127).astype(np.int8)
    else:
        scale = np.float32(2.0 ** (max(math.frexp(top)[1], LOWEST_EXPONENT) - 15))
        sent = np.clip(part * (1 / scale), -HALF_TOP, HALF_TOP).astype("<f2")
    return np.array(scale, "<f4").tobytes() + sent.tobytes()


def _read(payload: Payload, start: int, size: int, bits: int) -> tuple[Tensor, int]:
    """`size` numbers from byte `start` on, and where they end; PayloadError if one is not finite."""
    part = torch.empty(size)
    if bits == 32:
        part.numpy()[:] = np.frombuffer(payload, "<f4", size, start)
        start += 4 * size
    else:
        part.numpy()[:] = np.frombuffer(payload, "<f2" if bits == 16 else "i1", size, start + 4)
        part *= float(np.frombuffer(payload, "<f4", 1, start)[0])
        start += 4 + size * bits // 8
    if not math.isfinite(largest(part)):
        raise PayloadError("a payload with a number that is not finite")
    return part, start
