"""The frame: what travels between a device and the coordinator, simulated or over a network.

    frame = header (64 bytes) + payload (what the codec made) + buffers (the model's buffers as raw values)

All numbers of the header are little-endian:

    at  0  magic     4 bytes   "EDGW"
        4  version   u8        1
        5  kind      u8        UPDATE, STATE, DIFFERENCE or GUIDE
        6  reserved  2 bytes   zero
        8  layout    16 bytes  first half of the layout's digest (SHA-256)
       24  codec     8 bytes   first bytes of the SHA-256 of the codec's text form
       32  round     u32
       36  device    u32       the sender of an update; the addressee of a state, or EVERYONE
       40  value     f64       mean loss of an update; learning-rate factor of a task
       48  count     u32       examples behind an update; local steps of a task
       52  payload   u32       bytes
       56  buffers   u32       bytes
       60  checksum  u32       CRC-32 (zlib) of all other bytes of the frame

Nothing in a frame says how to read it: the receiver knows layout, codec and longest payload beforehand
(`Expected`) and refuses what declares another one before it reads or allocates the rest. Whatever the
bytes, the answer is a frame or FrameError. The checksum finds accidents; against forgers there is TLS.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from edgewise.errors import EdgewiseError

try:
    from isal.isal_zlib import crc32  # with a processor's own instructions: a fifth of the time
except ImportError:  # a machine for which there is no build
    from zlib import crc32

MAGIC, VERSION = b"EDGW", 1
FORM = struct.Struct("<4sBB2s16s8sIIdIIII")
LENGTH = FORM.size  # of the header: 64 bytes
CHECKED = LENGTH - 4  # bytes of the header that the checksum covers
EVERYONE = 0xFFFFFFFF  # the device of a frame that is addressed to no one in particular
LARGEST = 0xFFFFFFFF
CHUNK = 1 << 18  # bytes read from a stream at a time

Bytes = bytes | bytearray | memoryview
Part = bytes | memoryview


class FrameError(EdgewiseError, ValueError):
    """Bytes that are not a frame, or not the frame that was expected."""


class Kind(IntEnum):
    UPDATE = 1  # from a device to the coordinator
    STATE = 2  # from the coordinator: the full state, for a newcomer
    DIFFERENCE = 3  # from the coordinator: the state less the one that the whole cohort holds
    GUIDE = 4  # from the coordinator: what the algorithm sends beside the state


class Source(Protocol):
    """A binary stream: a file, a pipe, `socket.makefile("rb")`."""

    def read(self, size: int, /) -> bytes | None: ...


@dataclass(frozen=True)
class Expected:
    """What a receiver takes: one kind of frame, of one layout and codec, up to a length.

    `payload`: the longest payload in bytes (`codec.bound`), or the only length if `exact` (`codec.fixed`).
    `buffers`: their exact length in bytes.
    """

    kind: Kind
    layout: bytes
    codec: bytes
    payload: int
    buffers: int
    exact: bool = False


@dataclass(frozen=True)
class Frame:
    """`layout` and `codec` are marks, as `layout_mark` and `codec_mark` make them."""

    kind: Kind
    layout: bytes
    codec: bytes
    round: int
    device: int
    value: float
    count: int
    payload: Part
    buffers: Part


@dataclass(frozen=True)
class Header:
    """The first 64 bytes. `payload` and `buffers` are lengths in bytes; FrameError if a field is illegal."""

    kind: Kind
    layout: bytes
    codec: bytes
    round: int
    device: int
    value: float
    count: int
    payload: int
    buffers: int
    checksum: int = 0

    def __post_init__(self) -> None:
        for name, size in (("layout", 16), ("codec", 8)):
            if len(getattr(self, name)) != size:
                raise FrameError(f"a frame's {name} mark has {size} bytes, not {len(getattr(self, name))}")
        for name in ("round", "device", "count", "payload", "buffers"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise FrameError(f"a frame's {name} is at most {LARGEST}, not {getattr(self, name)}")
        if not math.isfinite(self.value):
            raise FrameError(f"a frame's value is a finite number, not {self.value}")
        if self.kind is Kind.UPDATE and self.device == EVERYONE:
            raise FrameError("an update's device is its sender, not everyone")
        if self.kind is not Kind.UPDATE and self.value < 0:
            raise FrameError(f"a task's learning-rate factor is not negative, as {self.value} is")

    @classmethod
    def parse(cls, data: Bytes) -> Header:
        """The header that a frame begins with; more bytes than 64 are not looked at."""
        if len(data) < LENGTH:
            raise FrameError(f"a frame has at least {LENGTH} bytes, not {len(data)}")
        magic, version, kind, reserved, *rest = FORM.unpack_from(data)
        if magic != MAGIC:
            raise FrameError(f"a frame begins with {MAGIC!r}, not {magic!r}")
        if version != VERSION:
            raise FrameError(f"a frame of version {version}, where version {VERSION} is understood")
        if kind not in set(Kind):
            raise FrameError(f"a frame's kind is one of {[*map(int, Kind)]}, not {kind}")
        if any(reserved):
            raise FrameError(f"a frame's reserved bytes are zero, not {reserved.hex()}")
        return cls(Kind(kind), *rest)

    def pack(self) -> bytes:
        """The 64 bytes."""
        marks = (self.layout, self.codec)
        numbers = (self.round, self.device, self.value, self.count, self.payload, self.buffers)
        return FORM.pack(MAGIC, VERSION, self.kind, bytes(2), *marks, *numbers, self.checksum)

    def check(self, *expected: Expected) -> None:
        """FrameError unless the frame is one of those expected (one for each kind that may come)."""
        wanted = next((one for one in expected if one.kind == self.kind), None)
        if wanted is None:
            kinds = " or ".join(one.kind.name for one in expected)
            raise FrameError(f"a frame of kind {self.kind.name}, where {kinds} was expected")
        for name, what in (("layout", "another model's layout"), ("codec", "another codec")):
            got, want = getattr(self, name), getattr(wanted, name)
            if got != want:
                raise FrameError(f"a frame of {what}: {got.hex()}, where {want.hex()} was expected")
        if self.payload > wanted.payload or (wanted.exact and self.payload != wanted.payload):
            most = "" if wanted.exact else "at most "
            raise FrameError(
                f"a frame with a payload of {self.payload} bytes, where {most}{wanted.payload} were expected"
            )
        if self.buffers != wanted.buffers:
            raise FrameError(
                f"a frame with buffers of {self.buffers} bytes, where {wanted.buffers} were expected"
            )

    def frame(self, payload: Part, buffers: Part, summed: bool = False) -> Frame:
        """The frame of this header and what follows it; FrameError if the checksum says otherwise.

        It is not looked at where it was already (`summed`).
        """
        checksum = self.checksum
        if not summed:
            checksum = crc32(buffers, crc32(payload, crc32(self.pack()[:CHECKED])))
        if checksum != self.checksum:
            raise FrameError(f"a frame with the checksum {checksum:08x}, where it says {self.checksum:08x}")
        marks = (self.kind, self.layout, self.codec)
        return Frame(*marks, self.round, self.device, self.value, self.count, payload, buffers)


class Sum:
    """The checksum of a frame, looked at while its bytes come in."""

    def __init__(self) -> None:
        self._head, self._value = b"", 0

    def add(self, data: Bytes) -> None:
        """The next bytes."""
        if (lacking := LENGTH - len(self._head)) > 0:
            self._head += data[:lacking]
            if len(self._head) < LENGTH:
                return
            self._value, data = crc32(self._head[:CHECKED]), memoryview(data)[lacking:]
        self._value = crc32(data, self._value)

    @property
    def agrees(self) -> bool:
        """Whether it is the one that the frame says."""
        return self._head[CHECKED:] == struct.pack("<I", self._value)


def layout_mark(digest: str) -> bytes:
    """The 16 bytes that stand for a layout, from `Layout.digest`."""
    return bytes.fromhex(digest)[:16]


def codec_mark(text: str) -> bytes:
    """The 8 bytes that stand for a codec, from its text form: what is set otherwise has another mark."""
    return hashlib.sha256(text.encode()).digest()[:8]


def length(payload: int, buffers: int) -> int:
    """The length in bytes of a frame around a payload and buffers of these lengths."""
    return LENGTH + payload + buffers


def pack(frame: Frame) -> bytes:
    """The bytes of a frame; FrameError if a field does not fit the format."""
    return b"".join(pieces(frame))


def pieces(frame: Frame) -> tuple[bytes, Bytes, Bytes]:
    """The bytes of a frame in three pieces, of which payload and buffers are the frame's own."""
    marks, lengths = (frame.kind, frame.layout, frame.codec), (len(frame.payload), len(frame.buffers))
    header = Header(*marks, frame.round, frame.device, frame.value, frame.count, *lengths).pack()[:CHECKED]
    checksum = crc32(frame.buffers, crc32(frame.payload, crc32(header)))
    return header + struct.pack("<I", checksum), frame.payload, frame.buffers


def unpack(data: Bytes, *expected: Expected, summed: bool = False) -> Frame:
    """The frame that these bytes are, all of them; else FrameError. Payload and buffers are views of them.

    `summed`: their checksum was looked at before (`Sum`).
    """
    header = Header.parse(data)
    header.check(*expected)
    if len(data) != length(header.payload, header.buffers):
        says = length(header.payload, header.buffers)
        what = "truncated" if len(data) < says else "followed by other bytes"
        raise FrameError(f"a frame that is {what}: {len(data)} bytes, where its header says {says}")
    body = memoryview(data)[LENGTH:]
    return header.frame(body[: header.payload], body[header.payload :], summed)


def read(source: Source, *expected: Expected) -> Frame:
    """The next frame of a stream; not a byte beyond it is read.

    FrameError if the stream ends before the frame does, or as `unpack`. After an error the stream is out
    of step, and can only be closed. Memory grows with what has arrived, not with what was declared.
    """
    header = Header.parse(_exactly(source, LENGTH))
    header.check(*expected)
    return header.frame(_exactly(source, header.payload), _exactly(source, header.buffers))


def _exactly(source: Source, size: int) -> bytes:
    """The next `size` bytes, however few the source gives at a time."""
    arrived = io.BytesIO()  # grows in place, and gives its bytes away without a copy
    while left := size - arrived.tell():
        chunk = source.read(min(left, CHUNK))
        if not chunk:
            raise FrameError(f"a frame that is truncated: {size - left} bytes came where {size} were due")
        if len(chunk) > left:
            raise FrameError(f"a stream that gave {len(chunk)} bytes where {left} were asked for")
        arrived.write(chunk)
    return arrived.getvalue()
