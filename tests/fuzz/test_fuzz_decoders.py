"""A short turn of the fuzzer, and proof that it finds what is broken; the long one is in docs/wire.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import fuzz_decoders
import fuzz_inputs
import pytest
import torch
from fuzz_decoders import Finding, Input, Tally, check, play, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgewise import wire
from edgewise.codecs import CODECS, Raw
from edgewise.vector import Layout

SMALL = [at for at, layout in enumerate(fuzz_inputs.LAYOUTS) if layout.count < 2000]


@pytest.mark.parametrize("name", CODECS)
def test_what_is_valid_travels_and_is_decoded(name: str) -> None:
    codecs = [*fuzz_inputs.by_name()[name], *fuzz_inputs.by_name()[f"{name}:zstd"]]
    tally = Tally()
    cases = [fuzz_inputs.Case(codec, layout, 0) for codec in codecs for layout in SMALL]
    for case in cases:
        play(Input(case, fuzz_decoders.PAYLOAD, fuzz_inputs.valid(case, 0)), tally)
    assert tally.taken.total() == len(cases)
    assert not tally.not_finite.total()


def test_many_inputs_are_answered_or_refused() -> None:
    tally = run(3000, seed=1, first=0, measure=100)
    assert tally.frames.total() == 3000 and tally.measured >= 30
    for name in fuzz_inputs.by_name():
        assert tally.refused[name] and tally.taken[name], f"the fuzzer hardly reaches {name}"


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_any_bytes_are_an_input_and_are_answered_or_refused(data: bytes) -> None:
    one = Input.parse(data)
    play(one, Tally())
    assert Input.parse(one.pack()) == one


def test_an_input_has_an_address() -> None:
    first, second = (Input.draw(Random(5)) for _ in range(2))
    assert first == second and Input.parse(first.pack()) == first


# ---- the fuzzer finds what is broken ----

Decode = Callable[[Raw, bytes, Layout, torch.dtype], Tensor]
whole: Decode = Raw.decode


def another_error(codec: Raw, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
    if payload[:1] == b"\xff":
        raise IndexError("out of range")
    return whole(codec, payload, layout, dtype)


def too_long(codec: Raw, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
    return torch.zeros(layout.count + (payload[:1] == b"\xff"), dtype=dtype)


def a_view(codec: Raw, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
    return torch.zeros(layout.count + 1, dtype=dtype)[1:]


def wasteful(codec: Raw, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
    bytearray(1 << 22)
    return whole(codec, payload, layout, dtype)


def wasteful_in_torch(codec: Raw, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
    torch.empty(1 << 22)
    return whole(codec, payload, layout, dtype)


def slow(codec: Raw, payload: bytes, layout: Layout, dtype: torch.dtype) -> Tensor:
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    return whole(codec, payload, layout, dtype)


BROKEN = {
    another_error: (IndexError, "out of range"),
    too_long: (Finding, "Size"),
    a_view: (Finding, "memory beyond the vector"),
    wasteful: (Finding, "bytes of memory"),
    wasteful_in_torch: (Finding, "bytes of memory"),
    slow: (Finding, "s for one input"),
}


@pytest.mark.parametrize("decode", BROKEN, ids=lambda decode: decode.__name__)
def test_a_broken_decoder_is_found(decode: Decode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raw, "decode", decode)
    monkeypatch.setattr(fuzz_decoders, "SECONDS", 0.25)
    error, reason = BROKEN[decode]
    case = fuzz_inputs.Case(fuzz_inputs.by_name()["none"][0], SMALL[2], 0)
    with pytest.raises(error, match=reason):
        for index in range(300):
            body = fuzz_inputs.payload(case, Random(index))
            check(Input(case, fuzz_decoders.PAYLOAD, body), Tally(), measure=True)


def test_a_reader_that_takes_what_the_other_refuses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = fuzz_inputs.Case(0, SMALL[2], 0)
    frame = case.frame(fuzz_inputs.valid(case, 0))
    monkeypatch.setattr(wire, "read", lambda source, *expected: frame)
    with pytest.raises(Finding, match="read takes what unpack refuses"):
        play(Input(case, fuzz_decoders.FRAME, b"not a frame"), Tally())
