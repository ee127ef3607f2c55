"""1, 2 or 4 bits a value: the levels that are best for a Gaussian, in blocks of 1,024.

The levels: Quantizing for Minimum Distortion, Max 1960, https://doi.org/10.1109/TIT.1960.1057548
The rotation: DRIVE, Vargaftik et al. 2021, https://arxiv.org/abs/2105.08339, and
EDEN, Vargaftik et al. 2022, https://arxiv.org/abs/2108.08842

    y = x, or with `rotate`  y = H (signs * x):  H orthonormal Hadamard, random signs
    q = the level nearest to each y / rms(y)
    x' = scale * q,  with `rotate`  signs * (H (scale * q))

    payload = one scale a block, fp32 | codes, the first one low;  with `rotate` the seed of the signs, 8
              bytes, before them

The highest bit of a code is the sign (1 where y < 0), below it stands the number of the level.

After the rotation the values of any block are close to Gaussian. Then the last block is filled up with zeros
whose codes travel too. The scale is <y, q> / <q, q>, the one of the smallest error: a contraction, whatever
the values. Only with `rotate` and without error feedback it is ||y||^2 / <y, q>, which would be unbiased
after a rotation drawn uniformly. A Hadamard rotation has only the signs to draw, and a bias is left, small
where many values of a block matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import Floats, Memory, Payload, Sending, check_length
from edgewise.codecs.blocks import Blocks, Codes, Quantise
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

SIDE = 32
BLOCK = SIDE * SIDE
GROWTH = 2.0 * SIDE  # more than the rotation's largest factor
SEED = 8  # bytes

# The positive ones, for a variance of 1. Each is the mean of the values that are nearest to it.
LEVELS: dict[int, tuple[float, ...]] = {
    1: (0.797884561,),
    2: (0.452780035, 1.510417608),
    4: (
        *(0.128395030, 0.388048299, 0.656759119, 0.942340456),
        *(1.256231197, 1.618046386, 2.069017227, 2.732589571),
    ),
}


@dataclass(frozen=True)
class Levels:
    bits: int = 1
    rotate: bool = False
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in LEVELS:
            raise EdgewiseError(f"codec levels: bits is {self.bits}; legal: 1, 2, 4")

    @property
    def _form(self) -> Blocks:
        return form(self.bits, self.rotate)

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        if not self.rotate:
            return self._form.encode(vector, nearest(self.bits)), memory
        seed = int(np.random.SFC64(sending.key).random_raw())
        signs, quantise = random_signs(seed), nearest(self.bits, unbiased=not sending.fed)
        payload = self._form.encode(vector, lambda rows, _: quantise(hadamard(rows * signs), BLOCK))
        return seed.to_bytes(SEED, "little") + payload, memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        if not self.rotate:
            return self._form.decode(payload, layout.count, dtype)
        check_length(payload, self.bound(layout, dtype))
        signs = random_signs(int.from_bytes(payload[:SEED], "little"))
        rest = memoryview(payload)[SEED:]
        return self._form.decode(rest, layout.count, dtype, lambda rows: hadamard(rows) * signs)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return SEED * self.rotate + self._form.bound(layout.count)


@cache
def form(bits: int, rotate: bool) -> Blocks:
    levels = LEVELS[bits]
    both = (*levels, *(-level for level in levels))
    return Blocks(BLOCK, both, whole=True, growth=GROWTH) if rotate else Blocks(BLOCK, both)


def nearest(bits: int, unbiased: bool = False) -> Quantise:
    """The quantiser to the levels of so many bits."""
    levels = np.array(LEVELS[bits], np.float32)
    cuts = (levels[1:] + levels[:-1]) / 2

    def quantise(rows: Floats, length: int) -> tuple[Floats, Codes]:
        sizes = np.abs(rows)
        energy = np.einsum("ij,ij->i", sizes, sizes)
        rms = np.sqrt(energy / np.float32(length))[:, None]
        codes = np.zeros(rows.shape, np.uint8)
        for cut in cuts:
            codes += sizes > cut * rms
        chosen = np.take(levels, codes, mode="clip")
        chosen[:, length:] = 0
        product = np.einsum("ij,ij->i", sizes, chosen)
        square = np.einsum("ij,ij->i", chosen, chosen)
        codes += np.multiply(rows < 0, np.uint8(len(levels)))
        return energy / product if unbiased else product / square, codes

    return quantise


def random_signs(seed: int) -> Floats:
    """-1 or 1 for each value of a block, from raw bits, which no version of numpy changes."""
    words = np.random.SFC64(seed).random_raw(BLOCK // 64).astype("<u8")
    return 1 - 2 * np.unpackbits(words.view(np.uint8), bitorder="little").astype(np.float32)


def hadamard(rows: Floats) -> Floats:
    """The orthonormal Hadamard transform of each row, which is its own inverse."""
    squares = torch.from_numpy(rows).view(-1, SIDE, SIDE)
    return (side() @ squares @ side()).view(-1, BLOCK).numpy()


@cache
def side() -> Tensor:
    """The orthonormal Hadamard matrix (SIDE, SIDE); that of a block is its Kronecker product with itself."""
    matrix = torch.ones(1, 1)
    while len(matrix) < SIDE:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / SIDE**0.5


__all__ = ["Levels"]
