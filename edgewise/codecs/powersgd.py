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

from edgewise.codecs.base import Floats, Memory, NotFinite, PayloadError, Sending, check_length, floats
from edgewise.errors import EdgewiseError
from edgewise.randomness import key
from edgewise.vector import Entry, Layout

WARM = "q"  # the memory's only tensor: the Q of every matrix, one after the other
LARGEST = float(torch.finfo(torch.float32).max)
LOWEST_EXPONENT = -112  # the scale of float16, 2^15 times smaller, still has an inverse in float32
HALF_TOP = 2.0**15 - 16  # the float16 before 2^15: 2^15 times the largest scale would be infinite
BYTE_TOP = LARGEST * (1 - 1e-6)  # 127 times a scale that was rounded up would be infinite
NUDGE = 1e-3


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
            first = _first(entry, self.rank)
            stop = start + first.numel()
            # Copied: the last bits of a product may depend on how its operands are aligned.
            q = memory[WARM][start:stop].clone().view_as(first) if WARM in memory else first
            matrix = torch.from_numpy(values[entry.start : entry.stop].reshape(_sides(entry)))
            p, q, scale = _factors(matrix, q)
            following.append(_restart(q, first).flatten())
            parts += [p.numpy(), (q * scale).numpy()]
            start = stop
        parts.append(np.concatenate([values[:0], *(values[e.start : e.stop] for e in others)]))
        payload = b"".join(_write(part.reshape(-1), self.bits) for part in parts)
        return payload, {WARM: torch.cat(following)} if following else {}

    def decode(self, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        vector = torch.empty(layout.count, dtype=dtype)
        matrices, others = self._parts(layout)
        start = 0
        for entry in matrices:
            rows, columns = _sides(entry)
            p, start = _read(payload, start, rows * self.rank, self.bits)
            q, start = _read(payload, start, columns * self.rank, self.bits)
            if not _largest(p) * _largest(q) * self.rank < LARGEST:
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
        sides = sum(sum(_sides(entry)) for entry in matrices)
        numbers = self.rank * sides + sum(entry.stop - entry.start for entry in others)
        scales = 2 * len(matrices) + 1 if self.bits < 32 else 0
        return numbers * self.bits // 8 + 4 * scales

    def _parts(self, layout: Layout) -> tuple[list[Entry], list[Entry]]:
        """The parameters that are sent as two factors, and the others."""
        small = [self.rank * sum(_sides(entry)) < math.prod(_sides(entry)) for entry in layout.params]
        pairs = list(zip(layout.params, small, strict=True))
        return [entry for entry, yes in pairs if yes], [entry for entry, yes in pairs if not yes]


def _sides(entry: Entry) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix; one of a single dimension is one column."""
    return (entry.shape[0], math.prod(entry.shape[1:])) if entry.shape else (1, 1)


def _first(entry: Entry, rank: int) -> Tensor:
    """The Q (m, rank) that every device starts with, whatever its seed."""
    draws = np.random.Generator(np.random.SFC64(key(0, f"powersgd/{entry.name}")))
    return torch.from_numpy(draws.standard_normal((_sides(entry)[1], rank), np.float32)).clone()


def _factors(matrix: Tensor, q: Tensor) -> tuple[Tensor, Tensor, float]:
    """P (n, rank), orthonormal, Q (m, rank) and a scale: P (scale * Q)^T stands for the matrix (n, m)."""
    largest, (rows, rank) = _largest(matrix), (matrix.shape[0], q.shape[1])
    # No entry of Q or of the product exceeds sqrt(n) * largest. NaN fails the comparison as well.
    if not 4 * rank * math.sqrt(rows) * largest < LARGEST:
        raise NotFinite
    exponent = max(math.frexp(largest)[1], LOWEST_EXPONENT)
    scaled = matrix * 2.0**-exponent  # a power of two: exact, and no square under- or overflows
    p = torch.linalg.qr(scaled @ q).Q  # orthonormal also where the product's columns are not independent
    return p, scaled.T @ p, 2.0**exponent


def _restart(q: Tensor, first: Tensor) -> Tensor:
    """Where the next round starts: Q (m, rank) with columns of norm 1, and a little of the first Q.

    Without that, what is exactly orthogonal to Q (after zeros: everything) would never be found again.
    """
    norms = q.norm(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    return (q / norms).add_(first, alpha=NUDGE / math.sqrt(len(first)))


def _largest(values: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


def _write(part: Floats, bits: int) -> bytes:
    """The bytes of some numbers; NotFinite if one is not."""
    largest = _largest(torch.from_numpy(part))
    if not math.isfinite(largest):
        raise NotFinite
    if bits == 32:
        return part.astype("<f4", copy=False).tobytes()
    if bits == 8:
        scale = np.float32(min(largest, BYTE_TOP) / 127)
        sent = np.rint(part / scale if scale else part).clip(-127, 127).astype(np.int8)
    else:
        scale = np.float32(2.0 ** (max(math.frexp(largest)[1], LOWEST_EXPONENT) - 15))
        sent = np.clip(part * (1 / scale), -HALF_TOP, HALF_TOP).astype("<f2")
    return np.array(scale, "<f4").tobytes() + sent.tobytes()


def _read(payload: bytes, start: int, size: int, bits: int) -> tuple[Tensor, int]:
    """`size` numbers from byte `start` on, and where they end; PayloadError if one is not finite."""
    part = torch.empty(size)
    if bits == 32:
        part.numpy()[:] = np.frombuffer(payload, "<f4", size, start)
        start += 4 * size
    else:
        part.numpy()[:] = np.frombuffer(payload, "<f2" if bits == 16 else "i1", size, start + 4)
        part *= float(np.frombuffer(payload, "<f4", 1, start)[0])
        start += 4 + size * bits // 8
    if not math.isfinite(_largest(part)):
        raise PayloadError("a payload with a number that is not finite")
    return part, start
