"""Random-k: values at random places, which both ends draw from one seed and which so need not travel.

Sparsified SGD with Memory, Stich et al. 2018, https://arxiv.org/abs/1809.07599

    k = round(share * n), at least 1
    the vector is cut into k stretches, stretch i from floor(i * n / k) to floor((i+1) * n / k);
    one place is drawn in each
    payload = seed: 8 bytes | values at the places, in order: float32

A value that stands for the L of its stretch is sent L-fold, so that the decoded vector is right on average.
With error feedback around, what is left out comes back later, and the value is sent as it is: that leaves out
1 - 1/L of the squared norm on average, where L-fold values are off by L - 1 times the squared norm.
(Stretches, and not a draw from the whole: the places differ, come in order, and cost one draw each.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.codecs.base import Memory, Payload, PayloadError, Sending, check_length, floats
from edgewise.codecs.indices import Indices
from edgewise.codecs.select import check_finite, check_share, count
from edgewise.codecs.topk import spread
from edgewise.vector import Layout

SEED = 8  # bytes
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class RandomK:
    """`share` of the values travel, drawn anew for every sending."""

    share: float = 0.01
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("randomk", self.share)

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        values = floats(vector)
        check_finite(values)
        seed = np.array(sending.key, "<u8").tobytes()
        places, lengths = draw(seed, count(self.share, len(values)), len(values))
        sent = values[places]
        if not sending.fed:
            with np.errstate(over="ignore"):
                sent = np.clip(sent * lengths.astype(np.float32), -LARGEST, LARGEST)
        return seed + sent.astype("<f4").tobytes(), memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        check_length(payload, self.bound(layout, dtype))
        values = np.frombuffer(payload, "<f4", offset=SEED).astype(np.float32)
        if not np.isfinite(values).all():
            raise PayloadError("a value is not finite")
        places, _ = draw(payload[:SEED], count(self.share, layout.count), layout.count)
        return spread(places, values, layout, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return SEED + 4 * count(self.share, layout.count)


def draw(seed: bytes | memoryview, k: int, n: int) -> tuple[Indices, NDArray[np.int64]]:
    """A place (k,) in each of k stretches of n values, and the stretches' lengths (k,)."""
    edges = np.arange(k + 1) * n // max(k, 1)
    lengths = np.diff(edges)
    # Raw bits only: what NumPy's distributions make of them may differ from version to version.
    raw = np.random.SFC64(int.from_bytes(seed, "little")).random_raw(k)
    # The upper half of the 96-bit product of 64 random bits and the length, which has 32 at most.
    length = lengths.astype(np.uint64)
    half = np.uint64(32)
    offsets = ((raw >> half) * length + ((raw & np.uint64(0xFFFFFFFF)) * length >> half)) >> half
    return edges[:-1] + offsets.astype(np.int64), lengths
