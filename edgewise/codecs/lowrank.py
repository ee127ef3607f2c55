"""Thin products whose ranks follow the energy: a budget of bytes is spent where it takes most of the update.

The subspaces are those of PowerSGD, Vogels et al. 2019, https://arxiv.org/abs/1905.13727 (subspace.py). Two
things differ. Each direction of each matrix is a term of its own, and the terms with the most energy for a
byte are sent, whichever matrices they belong to. And a number takes 4 bits, at the levels that are best for a
Gaussian (levels.py): error feedback gives rounding back, so bits are better spent on more directions.

    P, Q              of every matrix, turned so that P's columns are the left singular vectors of P Q^T
    term j            column p of P times column q of Q; energy |q|^2; so many bytes: 4 + n/2 + m/2
    ranks             terms by energy over bytes while they fit into the budget (the first one always does)
    a, b              the codes' levels nearest to p / rms(p) and q / rms(q)
    scales            those of the smallest error: the sum of the terms is a projection of the matrix on them

    payload = the ranks, 2 bytes a matrix | for every matrix its scales, float32, the codes of P, by columns,
              the codes of Q, by columns | all other values: one float32 scale, then int8 (topk.py)

Matrices with fewer than eight rows or columns, and parameters of one dimension, are among the other values.
They are sent whatever the budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Memory, NotFinite, Payload, PayloadError, Sending, floats
from edgewise.codecs.bits import pack, packed_size, unpack
from edgewise.codecs.levels import LEVELS, nearest
from edgewise.codecs.select import check_finite, check_share
from edgewise.codecs.subspace import LARGEST, WARM, factors, first, restart, sides
from edgewise.codecs.topk import read_values, write
from edgewise.vector import Entry, Layout

BITS = 4
BOTH = np.array([*LEVELS[BITS], *(-level for level in LEVELS[BITS])], np.float32)
TOP = float(BOTH.max())
RANK, SCALE = 2, 4  # bytes
SMALLEST = 8  # rows and columns of a matrix
FOLLOWED = 2  # directions that are followed, for each that an even split of the budget would send
RIDGE = 1e-3  # of terms of norm 1: what makes terms that are nearly the same harmless


@dataclass(frozen=True)
class LowRank:
    """`share`: the bytes sent, of those in float32; more where the other values alone take as many."""

    share: float = 0.01
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("lowrank", self.share)

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = floats(vector)
        check_finite(values)
        matrices, others = parts(layout)
        found, following, start = [], [], 0
        for entry in matrices:
            begin = first(entry, self._most(entry))
            stop = start + begin.numel()
            # Copied: the last bits of a product may depend on how its operands are aligned.
            warm = memory[WARM][start:stop].clone().view_as(begin) if WARM in memory else begin
            matrix = torch.from_numpy(values[entry.start : entry.stop].reshape(sides(entry)))
            p, q, scale = factors(matrix, warm)
            p, q = principal(p, q)
            following.append(restart(q, begin).flatten())
            found.append((matrix / scale, p, q, scale))
            start = stop
        energies = [(q.square().sum(0).double() * scale**2).tolist() for _, _, q, scale in found]
        ranks = allocate(energies, [_cost(entry) for entry in matrices], self._budget(layout))
        payload = [np.array(ranks, "<u2").tobytes()]
        payload += [_write(*terms, rank) for terms, rank in zip(found, ranks, strict=True)]
        rest = np.concatenate([values[:0], *(values[entry.start : entry.stop] for entry in others)])
        payload.append(write(rest, 8))
        return b"".join(payload), {WARM: torch.cat(following)} if following else {}

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        matrices, others = parts(layout)
        sizes = [entry.stop - entry.start for entry in others]
        start, content = RANK * len(matrices), memoryview(payload)
        if not start + SCALE + sum(sizes) <= len(content) <= self.bound(layout, dtype):
            raise PayloadError(f"a payload of {len(content)} bytes, which none of this layout has")
        ranks = np.frombuffer(content[:start], "<u2").tolist()
        lengths = [_length(entry, rank) for entry, rank in zip(matrices, ranks, strict=True)]
        if any(rank > self._most(entry) for rank, entry in zip(ranks, matrices, strict=True)):
            raise PayloadError("a payload with more terms of a matrix than are followed")
        if start + sum(lengths) + SCALE + sum(sizes) != len(content):
            raise PayloadError(f"a payload of {len(content)} bytes where its ranks ask for others")
        vector = torch.empty(layout.count, dtype=dtype)
        for entry, rank, length in zip(matrices, ranks, lengths, strict=True):
            left, right = _read(content[start : start + length], entry, rank)
            whole = vector[entry.start : entry.stop].view(sides(entry))
            torch.mm(left.to(dtype), right.to(dtype).T, out=whole)
            start += length
        rest = torch.from_numpy(read_values(content[start:], 8))
        for entry, part in zip(others, rest.split(sizes), strict=True):
            vector[entry.start : entry.stop] = part
        return vector

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        matrices, others = parts(layout)
        kept = RANK * len(matrices) + SCALE + sum(entry.stop - entry.start for entry in others)
        every = sum(_cost(entry) * self._most(entry) for entry in matrices)
        return kept + min(self._budget(layout), every)

    def _budget(self, layout: Layout) -> int:
        """Bytes for the terms of all matrices: at least for one of any of them."""
        matrices, others = parts(layout)
        kept = RANK * len(matrices) + SCALE + sum(entry.stop - entry.start for entry in others)
        left = math.floor(self.share * 4 * layout.count) - kept
        return max(left, max((_cost(entry) for entry in matrices), default=0))

    def _most(self, entry: Entry) -> int:
        """How many directions of a matrix are followed."""
        even = self.share * 4 * math.prod(sides(entry)) / _cost(entry)
        return min(*sides(entry), max(SMALLEST, math.ceil(FOLLOWED * even)), 0xFFFF)


def parts(layout: Layout) -> tuple[list[Entry], list[Entry]]:
    """The parameters that are sent as terms, and the others."""
    large = [min(sides(entry)) >= SMALLEST for entry in layout.params]
    pairs = list(zip(layout.params, large, strict=True))
    return [entry for entry, yes in pairs if yes], [entry for entry, yes in pairs if not yes]


def principal(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """P (n, r) and Q (m, r) of the same product, turned so that Q's columns are orthogonal, longest first."""
    _, turn = torch.linalg.eigh(q.T @ q)
    turn = turn.flip(1)
    return p @ turn, q @ turn


def allocate(energies: Sequence[Sequence[float]], costs: Sequence[int], budget: int) -> list[int]:
    """How many terms of each matrix fit into `budget` bytes, those of the most energy for a byte first.

    `energies` of a matrix fall; a term of it costs so many bytes. Terms without energy are not sent.
    """
    ranks = [0] * len(costs)
    for _, place in _by_worth(energies, costs):
        if costs[place] <= budget:
            budget -= costs[place]
            ranks[place] += 1
    return ranks


def _by_worth(energies: Sequence[Sequence[float]], costs: Sequence[int]) -> Iterator[tuple[float, int]]:
    terms = [(energy / costs[i], i) for i, own in enumerate(energies) for energy in own if energy > 0]
    return iter(sorted(terms, key=lambda term: (-term[0], term[1])))


def _cost(entry: Entry) -> int:
    """Bytes of a term."""
    return SCALE + sum(packed_size(side, BITS) for side in sides(entry))


def _length(entry: Entry, rank: int) -> int:
    """Bytes of so many terms of a matrix."""
    return SCALE * rank + sum(packed_size(side * rank, BITS) for side in sides(entry))


def _write(matrix: Tensor, p: Tensor, q: Tensor, scale: float, rank: int) -> bytes:
    """The bytes of the first `rank` terms p q^T of a matrix (n, m), which was divided by `scale`."""
    if not rank:
        return b""
    coded = [_levels(columns[:, :rank]) for columns in (p, q)]
    (left, _), (right, _) = coded
    sizes = left.norm(dim=0), right.norm(dim=0)
    a, b = left / sizes[0], right / sizes[1]
    gram = ((a.T @ a) * (b.T @ b)).double() + RIDGE * torch.eye(rank, dtype=torch.float64)
    wanted = (a * (matrix @ b)).sum(0).double()
    scales = (torch.linalg.solve(gram, wanted) / (sizes[0] * sizes[1]) * scale).float()
    if not float(scales.double().abs().sum()) * TOP**2 < LARGEST:
        raise NotFinite
    return scales.numpy().astype("<f4").tobytes() + b"".join(codes for _, codes in coded)


def _levels(columns: Tensor) -> tuple[Tensor, bytes]:
    """The levels nearest to the columns (n, r) in units of their sizes, and the bytes of their codes."""
    rows = np.ascontiguousarray(columns.T.numpy())
    _, codes = nearest(BITS)(rows, rows.shape[1])
    return torch.from_numpy(BOTH[codes]).T, pack(codes.reshape(-1), BITS).tobytes()


def _read(content: memoryview, entry: Entry, rank: int) -> tuple[Tensor, Tensor]:
    """P (n, rank), its columns times their scales, and Q (m, rank)."""
    scales = torch.from_numpy(np.frombuffer(content, "<f4", rank).astype(np.float32))
    if not float(scales.double().abs().sum()) * TOP**2 < LARGEST:
        raise PayloadError("a payload of terms whose sum may not be finite")
    start, found = SCALE * rank, []
    for side in sides(entry):
        stop = start + packed_size(side * rank, BITS)
        codes = unpack(np.frombuffer(content[start:stop], np.uint8), BITS, side * rank)
        found.append(torch.from_numpy(BOTH[codes]).view(rank, side).T)
        start = stop
    return found[0] * scales, found[1]


__all__ = ["LowRank"]
