"""Small unsigned integers packed into bytes, and back.

Value i of b bits takes the bits b*i .. b*i+b-1 of the payload, where bit j is bit j % 8 (counted from the
low end) of byte j // 8. So the first value lies in the low bits of the first byte. The last byte is filled
up with zeros, and `unpack` refuses anything else there: equal values have equal bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.base import PayloadError

Bytes = NDArray[np.uint8]

CHUNK = 1 << 15  # words at a time, so that the scratch space stays in the cache

# Values of 2 and 4 bits come as one byte each. As many as share a byte are read as one little-endian word,
# and these shifts fold the word into its lowest byte: 0x03020100 | >> 6 | >> 12 -> 0b11100100.
FOLDS: dict[int, tuple[int, ...]] = {2: (6, 12), 4: (4,)}
MASKS = {2: 0x03030303, 4: 0x0F0F}


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def pack(values: Bytes, bits: int) -> Bytes:
    """The bytes (packed_size,) of `values` (N,), each below 2 ** bits; `bits` is 1, 2 or 4."""
    if bits == 1:
        return np.packbits(values, bitorder="little")
    per_byte = 8 // bits
    rest = len(values) % per_byte
    packed = np.empty(packed_size(len(values), bits), np.uint8)
    whole = len(values) - rest
    words = np.ascontiguousarray(values[:whole]).view(f"<u{per_byte}")
    for start in range(0, len(words), CHUNK):
        folded = words[start : start + CHUNK]
        for shift in FOLDS[bits]:
            folded = folded | (folded >> shift)
        packed[start : start + len(folded)] = folded  # the low byte of each
    if rest:
        packed[-1] = sum(int(value) << (bits * place) for place, value in enumerate(values[whole:]))
    return packed


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """The `count` values of 1, 2 or 4 bits, one byte each; PayloadError for a wrong length or padding."""
    _check(packed, bits, count)
    if bits == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    words: NDArray[Any] = np.empty(len(packed), f"<u{8 // bits}")
    for start in range(0, len(packed), CHUNK):
        spread = packed[start : start + CHUNK].astype(words.dtype)
        for shift in reversed(FOLDS[bits]):
            spread |= spread << shift
        np.bitwise_and(spread, MASKS[bits], out=words[start : start + CHUNK])
    return words.view(np.uint8)[:count]


def pack_wide(values: NDArray[np.int64], bits: int) -> Bytes:
    """The bytes of the low `bits` bits, 0 to 32, of each of `values` (N,)."""
    packed = np.empty(packed_size(len(values), bits), np.uint8)
    for start in range(0, len(values) if bits else 0, CHUNK):  # a chunk of values ends with a byte
        four = values[start : start + CHUNK].astype("<u4").view(np.uint8).reshape(-1, 4)
        spread = np.unpackbits(four, axis=1, count=bits, bitorder="little").reshape(-1)
        place = start // 8 * bits
        packed[place : place + packed_size(len(four), bits)] = np.packbits(spread, bitorder="little")
    return packed


def unpack_wide(packed: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """The `count` values of `bits` bits, 0 to 32; PayloadError for a wrong length or padding."""
    _check(packed, bits, count)
    values = np.zeros(count, np.int64)
    for start in range(0, count if bits else 0, CHUNK):
        size = min(CHUNK, count - start)
        part = packed[start // 8 * bits :][: packed_size(size, bits)]
        spread = np.unpackbits(part, count=size * bits, bitorder="little").reshape(size, bits)
        four = np.zeros((size, 4), np.uint8)
        four[:, : packed_size(1, bits)] = np.packbits(spread, axis=1, bitorder="little")
        values[start : start + size] = four.reshape(-1).view("<u4")
    return values


def _check(packed: Bytes, bits: int, count: int) -> None:
    """PayloadError unless there are as many bytes as `count` values take, and zeros fill up the last."""
    expected = packed_size(count, bits)
    if len(packed) != expected:
        raise PayloadError(f"{len(packed)} bytes of packed values where {expected} were expected")
    used = count * bits % 8
    if used and int(packed[-1]) >> used:
        raise PayloadError("the last packed byte is not filled up with zeros")


__all__ = ["Bytes", "pack", "pack_wide", "packed_size", "unpack", "unpack_wide"]
