"""The k largest magnitudes of a long vector, exactly, in little more than one pass.

    threshold <- from a sample spread evenly over the vector, low enough to let a little more than k through
    candidates <- what lies at the threshold or above it
    the k largest of the candidates, or of the whole vector where the sample misled

Magnitudes are compared as integers (the bits of a float without its sign are in order), so NaN and infinity
are larger than every number and are found on the way.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.base import Floats, NotFinite
from edgewise.codecs.indices import Indices
from edgewise.errors import EdgewiseError

SAMPLE = 65521  # a prime: the steps between the sampled places fall in with no pattern of the vector
CHUNK = 1 << 16
UNSIGNED = np.int32(0x7FFFFFFF)
INFINITY = 0x7F800000


def count(share: float, n: int) -> int:
    """How many of n values a share of them is: at least one, where there is one."""
    return min(n, max(1, round(share * n)))


def check_share(codec: str, share: float) -> None:
    """EdgewiseError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise EdgewiseError(f"codec {codec}: share is {share:g}; legal: above 0, up to 1")


def largest(values: Floats, k: int) -> Indices:
    """The increasing indices (k,) of the k largest magnitudes of `values` (N,); of equal ones the first.

    NotFinite if a value is not, provided k > 0.
    """
    near = _candidates(values, k) if len(values) > 2 * SAMPLE else None
    kept = _exactly(_sizes(values), k) if near is None else near[_exactly(_sizes(values[near]), k)]
    if k and int(_sizes(values[kept]).max()) >= INFINITY:
        raise NotFinite
    return kept


def check_finite(values: Floats) -> None:
    """NotFinite if one of `values` (N,) is not a number or infinite."""
    finite = np.empty(min(len(values), CHUNK), np.bool_)
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        if not np.isfinite(chunk, out=finite[: len(chunk)]).all():
            raise NotFinite


def _sizes(values: Floats) -> NDArray[np.int32]:
    return values.view(np.int32) & UNSIGNED


def _candidates(values: Floats, k: int) -> Indices | None:
    """Indices that hold the k largest and few others, or None if the sample does not tell."""
    n = len(values)
    hits = SAMPLE * k / n
    rank = math.ceil(hits + 4 * math.sqrt(hits) + 4)  # four standard deviations of a random sample's hits
    if rank >= SAMPLE // 2:
        return None
    sample = _sizes(values[np.arange(SAMPLE) * n // SAMPLE])
    threshold = max(np.partition(sample, SAMPLE - rank)[SAMPLE - rank], np.int32(1))  # never zeros
    sizes, above = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.bool_)
    found: list[Indices] = []
    room = 2 * n * rank // SAMPLE  # many equal values at the threshold: more would be slower than no sample
    for start in range(0, n, CHUNK):
        chunk = values[start : start + CHUNK].view(np.int32)
        length = len(chunk)
        np.bitwise_and(chunk, UNSIGNED, out=sizes[:length])
        np.greater_equal(sizes[:length], threshold, out=above[:length])
        found.append(np.flatnonzero(above[:length]) + start)
        room -= len(found[-1])
        if room < 0:
            return None
    near = np.concatenate(found)
    if threshold == 1 and len(near) < k:  # all that is not zero; the first zeros lie among the first k
        zeros = np.flatnonzero(values[:k] == 0)
        near = np.sort(np.concatenate([near, zeros[: k - len(near)]]))
    return near if len(near) >= k else None


def _exactly(sizes: NDArray[np.int32], k: int) -> Indices:
    """Indices of the k largest of `sizes`, of equal ones the first, in order."""
    if not k:
        return np.zeros(0, np.int64)
    place = len(sizes) - k
    smallest = np.partition(sizes, place)[place]
    kept = sizes > smallest
    ties = np.flatnonzero(sizes == smallest)
    kept[ties[: k - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


__all__ = ["check_finite", "check_share", "count", "largest"]
