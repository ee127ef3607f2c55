"""A lossless stage over the payload of any codec: Zstandard, where it makes the payload shorter.

Zstandard, RFC 8878, https://www.rfc-editor.org/rfc/rfc8878

    payload = one byte, then    0: the inner payload as it is
                                1: a Zstandard frame of it
                                2: a Zstandard frame of its planes

Planes of a payload: the first bytes of all groups of four, then the second bytes, and so on; what remains of
the last group follows as it is. Signs and exponents come together and shrink, mantissas hardly do. All
three are tried, and the shortest is sent. Measured on values of a Gaussian in eight layers that each halve
in scale: raw 0.93 as a frame, 0.84 in planes; half 0.84 and 0.76 (planes of two: 0.76 too, so there are
none); int8 0.93 in both. Level 1 is the fastest and was never longer by more than 2 % than levels 3 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import zstandard
from torch import Tensor

from edgewise.codecs.base import Codec, Memory, Payload, PayloadError, Sending
from edgewise.vector import Layout

STORED, FRAME, PLANES = 0, 1, 2
WIDTH = 4
LEVEL = 1
SMALLEST_WINDOW = 1 << 10  # of the format


@dataclass(frozen=True)
class Zstd:
    """`codec`, its payload without loss made shorter where that is possible; at worst one byte longer."""

    codec: Codec
    fixed: ClassVar[bool] = False

    @property
    def lossless(self) -> bool:
        return self.codec.lossless

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        plain, memory = self.codec.encode(vector, layout, memory, sending)
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        forms = {
            STORED: plain,
            FRAME: compressor.compress(plain),
            PLANES: compressor.compress(to_planes(plain)),
        }
        flag = min(forms, key=lambda form: (len(forms[form]), form))
        return bytes([flag]) + forms[flag], memory

    def decode(self, payload: Payload, layout: Layout, dtype: torch.dtype) -> Tensor:
        if not len(payload):
            raise PayloadError("a payload of 0 bytes lacks the byte that says how it is compressed")
        flag, body = payload[0], memoryview(payload)[1:]
        longest = self.codec.bound(layout, dtype)
        if flag == STORED:
            if len(body) > longest:
                raise PayloadError(f"a payload of {len(body)} bytes where at most {longest} were expected")
            plain = body
        elif flag in (FRAME, PLANES):
            plain = memoryview(_decompress(body, longest))
        else:
            raise PayloadError(f"a payload compressed in an unknown way: {flag}")
        # The view has the interface of bytes that decoders use: a length, indices, slices and its buffer.
        inner: bytes = from_planes(plain) if flag == PLANES else plain  # type: ignore[assignment]
        return self.codec.decode(inner, layout, dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return 1 + self.codec.bound(layout, dtype)


def to_planes(plain: bytes) -> bytes:
    """The bytes ordered by their place within groups of four."""
    values = np.frombuffer(plain, np.uint8)
    whole = len(values) - len(values) % WIDTH
    return values[:whole].reshape(-1, WIDTH).T.tobytes() + values[whole:].tobytes()


def from_planes(planes: bytes | memoryview) -> bytes:
    """The inverse of `to_planes`."""
    values = np.frombuffer(planes, np.uint8)
    whole = len(values) - len(values) % WIDTH
    return values[:whole].reshape(WIDTH, -1).T.tobytes() + values[whole:].tobytes()


def _decompress(frame: memoryview, longest: int) -> bytes:
    """The content of a frame; PayloadError, before memory is taken, if it is not 1 to `longest` bytes."""
    try:
        header = zstandard.get_frame_parameters(frame)
        # The encoder always writes the size. The library takes as much memory as the header says.
        if not 0 < header.content_size <= longest or header.dict_id:
            raise PayloadError(f"a payload said to hold {header.content_size} bytes, not 1 to {longest}")
        window = max(longest, SMALLEST_WINDOW)
        plain = zstandard.ZstdDecompressor(max_window_size=window).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError(f"a payload that cannot be decompressed: {error}") from None
    if len(plain) != header.content_size:
        raise PayloadError(f"a payload of {len(plain)} bytes that says it holds {header.content_size}")
    return plain
