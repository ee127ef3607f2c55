"""The lossless stage: what it makes shorter, and frames that lie."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from specimens import bits, vector
from torch import Tensor

from edgewise.codecs.base import Memory, PayloadError, Sending
from edgewise.codecs.raw import Raw
from edgewise.codecs.zstd import FRAME, PLANES, STORED, Zstd, from_planes, to_planes
from edgewise.vector import Layout

FP32 = torch.float32
CODEC, LAYOUT = Zstd(Raw()), Layout.vector(1000)  # 4,000 bytes inside


def frame(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(content)


def encoded(values: Tensor) -> bytes:
    return CODEC.encode(values, Layout.vector(len(values)), {}, Sending())[0]


# ---- what is sent ----


def test_planes_by_hand() -> None:
    assert to_planes(b"aAxXbByYcCzZ??") == b"abcABCxyzXYZ??"
    assert from_planes(b"abcABCxyzXYZ??") == b"aAxXbByYcCzZ??"
    assert [to_planes(b"xyz"[:n]) for n in range(4)] == [b"", b"x", b"xy", b"xyz"]


@given(st.binary(max_size=50))
def test_planes_come_back(content: bytes) -> None:
    assert from_planes(to_planes(content)) == content == to_planes(from_planes(content))


def test_what_does_not_shrink_is_stored() -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(4000), np.float32).copy()
    payload = encoded(torch.from_numpy(noise))
    assert payload == bytes([STORED]) + noise.tobytes()
    assert len(payload) == CODEC.bound(LAYOUT, FP32)
    assert encoded(torch.zeros(0)) == bytes([STORED])


def test_what_repeats_is_a_frame() -> None:
    payload = encoded(vector("gaussian", 10).repeat(100))
    assert payload[0] == FRAME and len(payload) < 100
    assert payload[1:] == frame(bits(vector("gaussian", 10).repeat(100)))


def test_numbers_go_in_planes() -> None:
    values = vector("gaussian", 100_000)
    payload = encoded(values)
    assert payload[0] == PLANES and len(payload) < 0.9 * 400_000
    assert payload[1:] == frame(to_planes(bits(values)))
    assert bits(CODEC.decode(payload, Layout.vector(100_000), FP32)) == bits(values)


@dataclass(frozen=True)
class Recorder:
    """A codec that writes down what it is given and adds one to a memory."""

    seen: list[tuple[Memory, Sending]] = field(default_factory=list)
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    def encode(
        self, vector: Tensor, layout: Layout, memory: Memory, sending: Sending
    ) -> tuple[bytes, Memory]:
        self.seen.append((memory, sending))
        return b"payload", {"count": memory["count"] + 1}

    def decode(self, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
        assert bytes(payload) == b"payload"
        return torch.full((layout.count,), 5, dtype=dtype)

    def bound(self, layout: Layout, dtype: torch.dtype) -> int:
        return 7


def test_memory_and_circumstances_pass_through() -> None:
    inner, memory, sending = Recorder(), {"count": torch.tensor(3)}, Sending(4, 0.5, fed=True)
    codec = Zstd(inner)
    payload, after = codec.encode(torch.zeros(1000), LAYOUT, memory, sending)
    assert inner.seen == [(memory, sending)] and int(after["count"]) == 4
    assert codec.decode(payload, LAYOUT, FP32).tolist() == [5] * 1000
    assert (codec.bound(LAYOUT, FP32), codec.lossless, codec.fixed) == (8, False, False)
    assert Zstd(Raw()).lossless


# ---- what is refused ----

CONTENT = bytes(4000)


def header(size: int, window: int = 0) -> bytes:
    """The start of a frame that says it holds `size` bytes, in one segment unless a window is named."""
    magic = struct.pack("<I", zstandard.MAGIC_NUMBER)
    if window:
        return magic + bytes([0b11000000, window]) + struct.pack("<Q", size)
    return magic + bytes([0b11100000]) + struct.pack("<Q", size)


def repeat(byte: int, size: int) -> bytes:
    """The last block of a frame: one byte, `size` times."""
    return (1 | 1 << 1 | size << 3).to_bytes(3, "little") + bytes([byte])


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4000) + CONTENT
FRAMES = {
    "nothing": b"",
    "no frame": b"hello, I am no frame at all",
    "cut": frame(CONTENT)[:-1],
    "prolonged": frame(CONTENT) + b"\0",
    "two frames": frame(CONTENT[:2000]) + frame(CONTENT[2000:]),
    "skippable": SKIPPABLE,
    "skippable first": SKIPPABLE + frame(CONTENT),
    "empty": frame(b""),
    "too short inside": frame(CONTENT[1:]),
    "too long inside": frame(CONTENT + b"\0"),
    "no size": frame(CONTENT, write_content_size=False),
    "says a little more than allowed": header(4001) + repeat(0, 4001),
    "says a terabyte": header(1 << 40) + repeat(0, 4000),
    "says the most there is": header((1 << 64) - 1) + repeat(0, 4000),
    "holds more than it says": header(4000) + repeat(0, 100_000),
    "holds less than it says": header(4000) + repeat(0, 3999),
    "a dictionary": frame(CONTENT)[:4] + b"\x61\x05" + frame(CONTENT)[5:],  # the dictionary's number is 5
    "no such block": header(4000) + bytes([0b111, 0, 0]),
}


@pytest.mark.parametrize("flag", [FRAME, PLANES])
@pytest.mark.parametrize("wrong", FRAMES.values(), ids=FRAMES.keys())
def test_a_frame_that_lies_is_refused_in_little_memory(flag: int, wrong: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(PayloadError):
        CODEC.decode(bytes([flag]) + wrong, LAYOUT, FP32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_the_frames_of_the_test_are_frames() -> None:
    """Made in the same way but true, they are taken: the lie is what is refused."""
    for right in (
        frame(CONTENT),
        header(4000) + repeat(0, 4000),
        header(4000, window=0x10) + repeat(0, 4000),
    ):
        assert CODEC.decode(bytes([FRAME]) + right, LAYOUT, FP32).tolist() == [0] * 1000


@pytest.mark.parametrize("flag", [3, 4, 255])
def test_an_unknown_form_is_refused(flag: int) -> None:
    with pytest.raises(PayloadError, match=str(flag)):
        CODEC.decode(bytes([flag]) + frame(CONTENT), LAYOUT, FP32)


def test_a_payload_of_nothing_is_refused() -> None:
    with pytest.raises(PayloadError):
        CODEC.decode(b"", LAYOUT, FP32)


@pytest.mark.parametrize("size", [0, 3999, 4001, 1_000_000])
def test_what_is_stored_has_the_right_length(size: int) -> None:
    with pytest.raises(PayloadError):
        CODEC.decode(bytes([STORED]) + bytes(size), LAYOUT, FP32)
