"""The frame: whatever the bytes, the answer is the frame that was sent or FrameError."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise import wire
from edgewise.errors import EdgewiseError
from edgewise.wire import EVERYONE, LARGEST, LENGTH, Expected, Frame, FrameError, Header, Kind

LAYOUT, CODEC = bytes(range(16)), b"\xc0dec\xc0dec"
UPDATE = Frame(Kind.UPDATE, LAYOUT, CODEC, 7, 3, 0.75, 320, b"a payload", b"buffers")
STATE = replace(UPDATE, kind=Kind.STATE, device=EVERYONE, count=10)
FRAMES = [UPDATE, STATE, replace(STATE, kind=Kind.DIFFERENCE), replace(UPDATE, payload=b"", buffers=b"")]
EXPECTED = Expected(Kind.UPDATE, LAYOUT, CODEC, payload=100, buffers=7)

# The format of version 1. If this changes, so must the version.
GOLDEN = (
    "45444757 01 01 0000 000102030405060708090a0b0c0d0e0f c0646563c0646563 07000000 03000000"
    "000000000000e83f 40010000 09000000 07000000 {checksum}"
    "61207061796c6f6164 62756666657273"
)

deep = settings(derandomize=True, deadline=None, max_examples=300)


def expected(frame: Frame) -> Expected:
    return Expected(frame.kind, frame.layout, frame.codec, len(frame.payload), len(frame.buffers))


def sealed(data: bytes) -> bytes:
    """The same bytes with the checksum that fits them."""
    rest = zlib.crc32(data[LENGTH:], zlib.crc32(data[: LENGTH - 4]))
    return data[: LENGTH - 4] + struct.pack("<I", rest) + data[LENGTH:]


def test_the_checksum_is_the_same_without_a_build_of_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)  # as where it is not installed
    found = importlib.util.spec_from_file_location("wire_without_isal", wire.__file__)
    assert found is not None and found.loader is not None
    other = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, found.name, other)
    found.loader.exec_module(other)
    assert other.crc32 is zlib.crc32
    for frame in FRAMES:
        assert other.pack(other.Frame(**vars(frame))) == wire.pack(frame)


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return sealed(data[:at] + new + data[at + len(new) :])


def read(data: bytes, *wanted: Expected) -> Frame:
    """As unpack, through a stream; what is left over is refused as unpack refuses it."""
    stream = io.BytesIO(data)
    frame = wire.read(stream, *wanted)
    if stream.read():
        raise FrameError("left over")
    return frame


every_reader = pytest.mark.parametrize("reader", [wire.unpack, read], ids=["unpack", "read"])
Reader = Callable[..., Frame]


# ---- what is sent arrives ----


@every_reader
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.kind.name)
def test_what_is_packed_is_unpacked(reader: Reader, frame: Frame) -> None:
    assert reader(wire.pack(frame), expected(frame)) == frame
    assert reader(bytearray(wire.pack(frame)), expected(frame)) == frame


u32 = st.integers(0, LARGEST)
finite = st.floats(allow_nan=False, allow_infinity=False)


@deep
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), u32, u32, finite, st.data())
def test_any_frame_survives(
    layout: bytes, codec: bytes, round: int, count: int, value: float, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(Kind))
    device = data.draw(st.integers(0, LARGEST - (kind is Kind.UPDATE)))
    value = value if kind is Kind.UPDATE else abs(value)
    body = data.draw(st.binary(max_size=300)), data.draw(st.binary(max_size=300))
    frame = Frame(kind, layout, codec, round, device, value, count, *body)
    packed = wire.pack(frame)
    assert len(packed) == wire.length(len(frame.payload), len(frame.buffers))
    assert wire.unpack(memoryview(packed), expected(frame)) == frame
    assert wire.pack(wire.unpack(packed, expected(frame))) == packed


def test_the_format_does_not_drift() -> None:
    before, after = (bytes.fromhex(part) for part in GOLDEN.split("{checksum}"))
    checksum = zlib.crc32(before + after)
    assert checksum == 0x86D3312C
    assert wire.pack(UPDATE) == before + struct.pack("<I", checksum) + after
    assert LENGTH == 64 and len(wire.pack(UPDATE)) == 80


def test_marks() -> None:
    digest = "00112233445566778899aabbccddeeff" + "ff" * 16
    assert wire.layout_mark(digest).hex() == digest[:32]
    assert wire.codec_mark("topk:0.01").hex() == "9f222ef4d9137856"
    assert wire.codec_mark("topk:0.01") != wire.codec_mark("topk:0.02")


# ---- what is not a frame is refused ----

FAULTS = {
    "magic": (0, b"edgw", "begins with b'EDGW', not b'edgw'"),
    "version zero": (4, b"\0", "version 0, where version 1 is understood"),
    "a later version": (4, b"\2", "version 2, where version 1 is understood"),
    "kind zero": (5, b"\0", "kind is one of"),
    "an unknown kind": (5, b"\5", "kind is one of"),
    "another kind": (5, b"\2", "of kind STATE, where UPDATE was expected"),
    "the first reserved byte": (6, b"\1", "reserved"),
    "the second reserved byte": (7, b"\x80", "reserved"),
    "layout, first byte": (8, b"\xff", "another model's layout: ff01"),
    "layout, last byte": (23, b"\xff", "another model's layout"),
    "codec, first byte": (24, b"\xff", "another codec: ff64"),
    "codec, last byte": (31, b"\xff", "another codec"),
    "an update of everyone": (36, b"\xff" * 4, "sender"),
    "a value that is NaN": (40, struct.pack("<d", float("nan")), "finite"),
    "a value that is infinite": (40, struct.pack("<d", float("inf")), "finite"),
    "a payload that is too long": (52, struct.pack("<I", 101), "payload of 101 bytes, where at most 100"),
    "a payload that is huge": (52, b"\xff" * 4, "payload of 4294967295 bytes"),
    "a payload longer than what is there": (52, struct.pack("<I", 10), "truncated"),
    "a payload shorter than what is there": (52, struct.pack("<I", 8), "other bytes|left over|checksum"),
    "buffers that are too long": (56, struct.pack("<I", 8), "buffers of 8 bytes, where 7 were expected"),
    "buffers that are too short": (56, struct.pack("<I", 6), "buffers of 6 bytes, where 7 were expected"),
}


@every_reader
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_though_the_checksum_fits(reader: Reader, fault: str) -> None:
    at, new, reason = FAULTS[fault]
    with pytest.raises(FrameError, match=reason) as caught:
        reader(changed(wire.pack(UPDATE), at, new), EXPECTED)
    assert "\n" not in str(caught.value)


@every_reader
def test_a_negative_factor_is_refused_and_a_negative_loss_is_not(reader: Reader) -> None:
    negative = struct.pack("<d", -0.5)
    with pytest.raises(FrameError, match="negative"):
        reader(changed(wire.pack(STATE), 40, negative), expected(STATE))
    assert reader(changed(wire.pack(UPDATE), 40, negative), EXPECTED).value == -0.5


@every_reader
@pytest.mark.parametrize("size", [8, 10, 100])
def test_where_the_length_is_known_no_other_is_taken(reader: Reader, size: int) -> None:
    with pytest.raises(FrameError, match=f"payload of 9 bytes, where {size} were expected|at most 8"):
        reader(wire.pack(UPDATE), replace(EXPECTED, payload=size, exact=size != 8))
    assert reader(wire.pack(UPDATE), replace(EXPECTED, payload=9, exact=True)) == UPDATE


@every_reader
def test_a_receiver_may_expect_one_of_several_kinds(reader: Reader) -> None:
    difference = replace(STATE, kind=Kind.DIFFERENCE, codec=b"another!", payload=b"little")
    wanted = expected(STATE), expected(difference)
    assert reader(wire.pack(STATE), *wanted) == STATE
    assert reader(wire.pack(difference), *wanted) == difference
    with pytest.raises(FrameError, match="of kind UPDATE, where STATE or DIFFERENCE was expected"):
        reader(wire.pack(UPDATE), *wanted)
    with pytest.raises(FrameError, match="another codec"):
        reader(wire.pack(replace(difference, codec=CODEC)), *wanted)


@every_reader
def test_every_single_flipped_bit_is_noticed(reader: Reader) -> None:
    packed = wire.pack(UPDATE)
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            reader(bytes(flipped), EXPECTED)


@every_reader
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.kind.name)
def test_every_truncation_is_noticed(reader: Reader, frame: Frame) -> None:
    packed = wire.pack(frame)
    for size in range(len(packed)):
        with pytest.raises(FrameError, match=r"truncated|at least 64"):
            reader(packed[:size], expected(frame))


@pytest.mark.parametrize("more", [b"\0", b"more", wire.pack(UPDATE)])
def test_bytes_after_the_frame_are_refused(more: bytes) -> None:
    with pytest.raises(FrameError, match="followed by other bytes"):
        wire.unpack(wire.pack(UPDATE) + more, EXPECTED)


@deep
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for reader in (wire.unpack, read):
        with pytest.raises(FrameError):
            reader(data, EXPECTED)


@deep
@given(st.data())
def test_what_has_a_fitting_checksum_is_the_frame_it_says_or_refused(
    data: st.DataObject,
) -> None:
    mutated = bytearray(wire.pack(UPDATE))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    for reader in (wire.unpack, read):
        try:
            frame = reader(sealed(bytes(mutated)), EXPECTED)
        except FrameError:
            continue
        assert wire.pack(frame) == sealed(bytes(mutated))


ILLEGAL = {
    "layout": b"short",
    "codec": b"much too long",
    "round": -1,
    "count": LARGEST + 1,
    "device": EVERYONE,
    "value": float("nan"),
}


@pytest.mark.parametrize("field", ILLEGAL)
def test_what_does_not_fit_is_not_packed(field: str) -> None:
    with pytest.raises(FrameError, match="sender" if field == "device" else field):
        wire.pack(replace(UPDATE, **{field: ILLEGAL[field]}))


def test_the_error_is_one_line_to_the_user() -> None:
    assert issubclass(FrameError, EdgewiseError) and issubclass(FrameError, ValueError)


# ---- streams ----


class Trickle:
    """A stream that gives what it likes, at most what is asked for, and remembers how much was asked."""

    def __init__(self, data: bytes, step: int) -> None:
        self.stream, self.step, self.asked = io.BytesIO(data), step, 0

    def read(self, size: int, /) -> bytes:
        self.asked = max(self.asked, size)
        return self.stream.read(min(size, self.step))


@pytest.mark.parametrize("step", [1, 3, 63, 64, 65])
def test_a_stream_may_give_little_at_a_time(step: int) -> None:
    stream = Trickle(b"".join(map(wire.pack, FRAMES)), step)
    for frame in FRAMES:  # one after the other: none reads into the next
        assert wire.read(stream, expected(frame)) == frame
    with pytest.raises(FrameError, match="truncated: 0 bytes came where 64 were due"):
        wire.read(stream, EXPECTED)


@pytest.mark.parametrize("answer", [None, b"", bytes(65)], ids=["no bytes yet", "the end", "too many"])
def test_a_stream_that_does_not_give_what_is_due(answer: bytes | None) -> None:
    class Odd:
        def read(self, size: int, /) -> bytes | None:
            return answer

    with pytest.raises(FrameError, match=r"truncated|asked for"):
        wire.read(Odd(), EXPECTED)


def test_a_header_alone_tells_that_the_rest_need_not_be_read() -> None:
    huge = changed(wire.pack(UPDATE), 52, b"\xff" * 4)
    header = Header.parse(huge[:LENGTH])
    assert (header.round, header.payload) == (7, LARGEST)
    with pytest.raises(FrameError, match="at most 100"):
        header.check(EXPECTED)
    stream = io.BytesIO(huge)
    with pytest.raises(FrameError, match="at most 100"):
        wire.read(stream, EXPECTED)
    assert stream.tell() == LENGTH


# ---- memory ----

MiB = 1 << 20
SLACK = 100_000  # error messages, the header, the chunk's object


@contextmanager
def peak_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes were taken, where {limit:,} are the limit"


@every_reader
def test_a_huge_declared_length_takes_no_memory(reader: Reader) -> None:
    huge = changed(wire.pack(UPDATE), 52, b"\xff" * 4)
    for limit in (100, LARGEST):  # refused by the header; allowed, but it does not come
        with peak_below(SLACK + wire.CHUNK), pytest.raises(FrameError):
            reader(huge, replace(EXPECTED, payload=limit))


def test_a_stream_is_read_in_the_memory_of_the_frame() -> None:
    frame = replace(UPDATE, payload=bytes(8 * MiB), buffers=bytes(MiB))
    stream = Trickle(wire.pack(frame), 100_000)
    with peak_below(8 * MiB * 9 // 8 + MiB * 9 // 8 + wire.CHUNK + SLACK):
        got = wire.read(stream, expected(frame))
    assert got == frame and stream.asked <= wire.CHUNK


def test_a_stream_that_does_not_end_is_left_alone() -> None:
    class Endless:
        given = 0

        def read(self, size: int, /) -> bytes:
            self.given += size
            return bytes(size)

    stream = Endless()
    with pytest.raises(FrameError, match="begins with"):
        wire.read(stream, EXPECTED)
    assert stream.given == LENGTH


def test_unpacking_copies_the_frame_once() -> None:
    frame = replace(UPDATE, payload=bytes(8 * MiB))
    packed = wire.pack(frame)
    with peak_below(8 * MiB + SLACK):
        wire.unpack(packed, expected(frame))
    with peak_below(8 * MiB + SLACK):
        wire.pack(frame)


# ---- the checksum, while bytes come in ----


@given(st.binary(max_size=40), st.lists(st.integers(0, 110), max_size=5), st.integers(0, 103))
def test_a_checksum_is_found_whatever_the_pieces(payload: bytes, cuts: list[int], at: int) -> None:
    packed = wire.pack(replace(UPDATE, payload=payload, buffers=b""))
    flipped = bytearray(packed)
    flipped[min(at, len(packed) - 1)] ^= 1
    for data in (packed, bytes(flipped)):
        found = wire.Sum()
        for start, stop in pairwise([0, *sorted(cuts), max([len(data), *cuts])]):
            found.add(data[start:stop])
        assert found.agrees == (data == packed)


def test_what_is_shorter_than_a_header_has_no_checksum() -> None:
    found = wire.Sum()
    assert not found.agrees
    found.add(wire.pack(UPDATE)[:63])
    assert not found.agrees
