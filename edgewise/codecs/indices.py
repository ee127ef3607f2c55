"""Elias-Fano coding: k increasing indices below n in about 2 + log2(n / k) bits each.

Elias 1974, Efficient Storage and Retrieval by Content and Address of Static Files,
https://doi.org/10.1145/321812.321820

    l = floor(log2(n / k))
    low    l bits of each index, packed                                     ceil(k * l / 8) bytes
    high   a bitmap: bit (index >> l) + i is set for the index number i     ceil((k + (n-1 >> l)) / 8) bytes

Both ends know k and n, so the size is known before anything is encoded. Every set of indices has one
encoding, and every encoding that is accepted is a set of indices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.base import PayloadError, check_length
from edgewise.codecs.bits import pack, pack_wide, packed_size, unpack, unpack_wide

Indices = NDArray[np.int64]


def size(k: int, n: int) -> int:
    """Bytes that k indices below n take, 0 <= k <= n."""
    return packed_size(k, _low_bits(k, n)) + packed_size(_high_bits(k, n), 1)


def encode(indices: Indices, n: int) -> bytes:
    """The bytes of strictly increasing `indices` (k,), all below n."""
    k = len(indices)
    low = _low_bits(k, n)
    high = np.zeros(_high_bits(k, n), np.uint8)
    high[(indices >> low) + np.arange(k)] = 1
    return pack_wide(indices, low).tobytes() + pack(high, 1).tobytes()


def decode(payload: bytes | memoryview, k: int, n: int) -> Indices:
    """The k increasing indices below n that `payload` stands for; PayloadError if there are none such."""
    check_length(payload, size(k, n))
    if not k:
        return np.zeros(0, np.int64)
    content = np.frombuffer(payload, np.uint8)
    low = _low_bits(k, n)
    end = packed_size(k, low)
    ones = np.flatnonzero(unpack(content[end:], 1, _high_bits(k, n)))
    if len(ones) != k:
        raise PayloadError(f"{len(ones)} indices where {k} were expected")
    indices = ((ones - np.arange(k)) << low) | unpack_wide(content[:end], low, k)
    if indices[-1] >= n or not bool((indices[1:] > indices[:-1]).all()):
        raise PayloadError("indices out of order or out of range")
    return indices


def _low_bits(k: int, n: int) -> int:
    return min((n // k).bit_length() - 1, 32) if k else 0


def _high_bits(k: int, n: int) -> int:
    return k + ((n - 1) >> _low_bits(k, n)) if k else 0


__all__ = ["Indices", "decode", "encode", "size"]
