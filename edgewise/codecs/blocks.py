"""What most codecs share: blocks of values, each with a scale, and few levels to choose from.

    payload = one scale a block, fp32 | the codes of all values

A value is its block's scale times the level that its code stands for. Blocks have `size` values, the last
one maybe fewer. A byte holds as many codes as fit, the first in its lowest digit: eight of 2 levels, five
of 3 (`a + 3 b + 9 c + 27 d + 81 e`), four of 4, two of 16, one of 256. The last byte is filled up with zeros.

The work goes by chunks whose scratch space stays in the processor's cache, and bytes become values by a
table of 256 rows: both matter more for the speed than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.codecs import bits
from edgewise.codecs.base import Floats, NotFinite, PayloadError, check_length, floats

Codes = NDArray[np.uint8]
# (blocks, size) values, and how many of each block are real (the rest are zeros) -> scales (blocks,), codes
# (blocks, size). It must give c * scales and the same codes for c * values.
Quantise = Callable[[Floats, int], tuple[Floats, Codes]]
Turn = Callable[[Floats], Floats]

CHUNK = 1 << 16  # values
PER_BYTE = {2: 8, 3: 5, 4: 4, 16: 2, 256: 1}  # codes, by the number of levels
INT8 = tuple(range(128)) + tuple(range(-128, 0))  # what the 256 codes stand for, where there are so many
SMALL, LARGE = np.float32(2.0**-60), np.float32(2.0**60)  # between them squares and sums stay in range


@dataclass(frozen=True)
class Blocks:
    """A format: `size` values a block, and what the codes 0, 1, ... stand for.

    `whole`: the last block is filled up with zeros, and their codes travel too. `growth`: what decoded values
    may still be multiplied by without leaving fp32.
    """

    size: int
    levels: tuple[float, ...]
    whole: bool = False
    growth: float = 1.0

    def bound(self, count: int) -> int:
        """Bytes of the payload of `count` values."""
        return 4 * self._number(count) + -(-self._sent(count) // self._per_byte)

    def encode(self, vector: Tensor, quantise: Quantise) -> bytes:
        """The payload of a vector (N,). NotFinite if there is NaN or infinity in it."""
        values = floats(vector)
        payload = np.empty(self.bound(len(values)), np.uint8)
        scales, codes = self._split(payload, len(values))
        with np.errstate(all="ignore"):  # what overflows or is no number is found by its scale
            for start, stop in self._spans(len(values)):
                rows = self._rows(values[start:stop])
                length = min(self.size, stop - start)
                some_scales, some_codes = quantise(rows, length)
                self._mend(rows, length, quantise, some_scales, some_codes)
                scales[start // self.size :][: len(rows)] = some_scales
                packed = self._pack(some_codes.reshape(-1)[: None if self.whole else stop - start])
                codes[start // self._per_byte :][: len(packed)] = packed
        return payload.tobytes()

    def decode(
        self, payload: bytes | memoryview, count: int, dtype: torch.dtype, turn: Turn | None = None
    ) -> Tensor:
        """The vector (count,). `turn`: what becomes of blocks (blocks, size) at the end. PayloadError."""
        check_length(payload, self.bound(count))
        scales, codes = self._split(np.frombuffer(payload, np.uint8), count)
        self._check(scales, codes, self._sent(count))
        vector = torch.empty(count, dtype=dtype)
        target = vector.numpy()
        scratch = np.zeros(min(self._step, self.size * self._number(count)), np.float32)
        for start, stop in self._spans(count):
            blocks = self._number(stop - start)
            here = slice(start // self._per_byte, -(-(start + self._sent(stop - start)) // self._per_byte))
            rows = scratch[: blocks * self.size].reshape(blocks, self.size)
            self._expand(codes[here], rows.reshape(-1))
            rows *= scales[start // self.size :][:blocks, None]
            rows = turn(rows) if turn else rows
            target[start:stop] = rows.reshape(-1)[: stop - start]
        return vector

    def _number(self, count: int) -> int:
        return -(-count // self.size)

    def _sent(self, count: int) -> int:
        """How many codes `count` values have."""
        return self.size * self._number(count) if self.whole else count

    @property
    def _per_byte(self) -> int:
        return PER_BYTE[len(self.levels)]

    @property
    def _step(self) -> int:
        return max(1, CHUNK // self.size) * self.size

    @cached_property
    def _largest(self) -> np.float32:
        """The largest scale: no value that is decoded leaves fp32."""
        top = float(np.finfo(np.float32).max) / max(1, self.growth * max(map(abs, self.levels)))
        return np.nextafter(np.float32(top), np.float32(0))

    @cached_property
    def _table(self) -> Floats:
        """The levels (256, codes a byte) that each byte stands for."""
        powers = len(self.levels) ** np.arange(self._per_byte)
        digits = np.arange(256)[:, None] // powers % len(self.levels)
        return np.array(self.levels, np.float32)[digits]

    def _spans(self, count: int) -> Iterator[tuple[int, int]]:
        """Whole blocks in chunks, then what is left."""
        whole = count // self.size * self.size
        for start in range(0, whole, self._step):
            yield start, min(start + self._step, whole)
        if whole < count:
            yield whole, count

    def _rows(self, values: Floats) -> Floats:
        if len(values) % self.size:
            values = np.pad(values, (0, -len(values) % self.size))
        return values.reshape(-1, self.size)

    def _split(self, payload: Codes, count: int) -> tuple[NDArray[np.float32], Codes]:
        """The scales and the codes, as views into the payload."""
        end = 4 * self._number(count)
        return payload[:end].view("<f4"), payload[end:]

    def _mend(self, rows: Floats, length: int, quantise: Quantise, scales: Floats, codes: Codes) -> None:
        """Quantise what is very small or large as multiples of each block's largest value, in place."""
        odd = np.flatnonzero(~((scales > SMALL) & (scales < LARGE)))
        if not len(odd):
            return
        most = np.abs(rows[odd]).max(axis=1)
        if not np.isfinite(most).all():
            raise NotFinite
        scales[odd] = 0
        odd, most = odd[most > 0], most[most > 0]
        if len(odd):
            parts, codes[odd] = quantise(rows[odd] / most[:, None], length)
            scales[odd] = np.minimum(parts.astype(np.float64) * most, self._largest)

    def _pack(self, codes: Codes) -> Codes:
        if self._per_byte == 5:
            return _pack_trits(codes)
        return codes if self._per_byte == 1 else bits.pack(codes, 8 // self._per_byte)

    def _expand(self, codes: Codes, out: Floats) -> None:
        """The levels of packed codes, and zeros after them."""
        out[len(codes) * self._per_byte :] = 0
        out = out[: len(codes) * self._per_byte]
        if self._per_byte == 1:  # by far faster than the table
            np.copyto(out, codes.view(np.int8))
        else:
            np.take(self._table, codes, axis=0, out=out.reshape(-1, self._per_byte), mode="clip")

    def _check(self, scales: Floats, codes: Codes, sent: int) -> None:
        """PayloadError for scales and codes that `encode` cannot have made."""
        if not ((scales >= 0) & (scales <= self._largest)).all():
            raise PayloadError(f"a payload with a scale that is not between 0 and {self._largest}")
        base, used = len(self.levels), sent % self._per_byte
        if used and int(codes[-1]) >= base**used:
            raise PayloadError("a payload whose last byte is not filled up with zeros")
        if base**self._per_byte < 256 and len(codes) and codes.max() >= base**self._per_byte:
            raise PayloadError(f"a payload with a byte that is no {self._per_byte} codes of {base} levels")


def _pack_trits(codes: Codes) -> Codes:
    """Five codes 0, 1 or 2 in a byte."""
    five = (np.pad(codes, (0, -len(codes) % 5)) if len(codes) % 5 else codes).reshape(-1, 5)
    packed = five[:, 4] * np.uint8(3)
    for place in (3, 2, 1):
        packed += five[:, place]
        packed *= np.uint8(3)
    packed += five[:, 0]
    return packed


__all__ = ["INT8", "Blocks", "Codes", "Quantise"]
