"""The contract of every codec, and of every codec with feedback and a stage around it.

A codec listed in CODECS needs a row in specimens.TEXTS; its own arithmetic is tested in a file of its own.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from specimens import (
    BARE,
    FORMS,
    KINDS,
    LAYOUTS,
    LISTED,
    LOSSY,
    PLAIN,
    SENDING,
    STAGED,
    STOCHASTIC,
    TEXTS,
    bits,
    image,
    vector,
    warmed,
)

from edgewise.codecs import CODECS, Codec, NotFinite, PayloadError, Raw, Sending, inner, parse, text
from edgewise.specs import name_of
from edgewise.vector import Layout

SIZES = [0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 255, 257, 1000, 1023, 1024, 1025, 4097]
BIG = 300_001
HUGE = 11_173_962  # ResNet18 of width 64

every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
every_bare_form = pytest.mark.parametrize("form", BARE)


def check_round_trip(codec: Codec, values: torch.Tensor, layout: Layout) -> None:
    payload, _ = codec.encode(values, layout, {}, SENDING)
    bound = codec.bound(layout, values.dtype)
    assert type(payload) is bytes
    assert len(payload) == bound if codec.fixed else len(payload) <= bound
    decoded = codec.decode(payload, layout, values.dtype)
    assert decoded.shape == values.shape and decoded.dtype == values.dtype
    assert decoded.isfinite().all()
    if codec.lossless:
        assert bits(decoded) == bits(values)


# ---- the table ----


def test_every_codec_has_its_row() -> None:
    assert TEXTS.keys() == CODECS.keys()


@pytest.mark.parametrize("form", LISTED)
def test_a_row_holds_codecs_of_its_name(form: str) -> None:
    assert name_of(CODECS, inner(parse(form))) == form.split(":")[0]


@every_form
def test_text_form_round_trip(form: str) -> None:
    codec = parse(form)
    assert parse(text(codec)) == codec
    assert text(parse(text(codec))) == text(codec)


# ---- what goes in comes out ----


@every_form
@every_dtype
def test_every_size(form: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        check_round_trip(parse(form), vector("steps", size, dtype), Layout.vector(size))


@every_form
def test_every_kind_of_vector(form: str) -> None:
    for kind, layout in product(KINDS, LAYOUTS.values()):
        check_round_trip(parse(form), vector(kind, layout.count), layout)


@pytest.mark.parametrize("form", LISTED)
def test_a_big_vector(form: str) -> None:
    check_round_trip(parse(form), vector("gaussian", BIG), Layout.vector(BIG))


@pytest.mark.slow
@pytest.mark.parametrize("form", [*LISTED, "none:zstd"])
def test_a_vector_of_eleven_million(form: str) -> None:
    check_round_trip(parse(form), torch.randn(HUGE), Layout.vector(HUGE))


@pytest.mark.parametrize("form", PLAIN)
def test_a_lossy_codec_takes_doubles_as_singles(form: str) -> None:
    codec, layout = parse(form), LAYOUTS["net"]
    double = vector("heavy", layout.count, torch.float64)
    payload, _ = codec.encode(double, layout, {}, SENDING)
    if codec.lossless:
        assert bits(codec.decode(payload, layout, torch.float64)) == bits(double)
        return
    assert payload == codec.encode(double.float(), layout, {}, SENDING)[0]
    exact, single = (codec.decode(payload, layout, dtype) for dtype in (torch.float64, torch.float32))
    assert torch.allclose(exact, single.double(), rtol=1e-5, atol=1e-5 * float(single.abs().max()))


# ---- nothing but the payload and the memory changes ----


@every_form
def test_vector_and_memory_are_left_as_they_are(form: str) -> None:
    codec, layout = parse(form), LAYOUTS["net"]
    memory, values = warmed(codec, layout), vector("gaussian", layout.count)
    seen, before = bits(values), image(memory)
    payload, after = codec.encode(values, layout, memory, SENDING)
    assert bits(values) == seen and image(memory) == before
    next_before = image(after)
    again, _ = codec.encode(values, layout, after, SENDING)
    codec.decode(again, layout, torch.float32).zero_()
    values.fill_(7)  # the memory must not be a view of it
    assert image(memory) == before and image(after) == next_before
    assert codec.decode(payload, layout, torch.float32).shape == values.shape


@every_form
def test_a_slice_of_a_longer_vector_is_encoded_as_itself(form: str) -> None:
    codec, whole = parse(form), vector("gaussian", 900)
    for part in (whole[3:450], whole[::2], whole[450:].detach().requires_grad_()):
        layout, alone = Layout.vector(len(part)), part.detach().clone()
        payload, after = codec.encode(part, layout, {}, SENDING)
        expected, expected_after = codec.encode(alone, layout, {}, SENDING)
        assert payload == expected and image(after) == image(expected_after)
        assert not any(tensor.requires_grad for tensor in after.values())


@every_form
def test_same_key_same_bytes(form: str) -> None:
    codec, layout = parse(form), LAYOUTS["net"]
    values = vector("gaussian", layout.count)
    memory = warmed(codec, layout)
    payloads = {codec.encode(values, layout, memory, SENDING)[0] for _ in range(3)}
    assert len(payloads) == 1
    if form.removesuffix(":nofeedback") in STOCHASTIC and form in PLAIN:
        others = {codec.encode(values, layout, memory, Sending(key=key))[0] for key in (0, 2, 2**63 - 1)}
        assert len(payloads | others) == 4


@every_form
@every_dtype
def test_the_memory_survives_a_trip_through_a_file(form: str, dtype: torch.dtype) -> None:
    codec, layout = parse(form), LAYOUTS["net"]
    memory = warmed(codec, layout, dtype)
    restored = load(save(dict(memory)))
    assert image(restored) == image(memory)
    values = vector("heavy", layout.count, dtype)
    expected, expected_after = codec.encode(values, layout, memory, Sending(key=9, rate=0.5))
    payload, after = codec.encode(values, layout, restored, Sending(key=9, rate=0.5))
    assert payload == expected and image(after) == image(expected_after)


# ---- NaN and infinity ----


@every_form
def test_what_is_not_finite_is_refused_or_sent_exactly(form: str) -> None:
    codec = parse(form)
    for layout in LAYOUTS.values():
        memory = warmed(codec, layout)
        before = image(memory)
        places, bads = (0, layout.count // 2, layout.count - 1), (float("nan"), float("inf"), -float("inf"))
        for place, bad, start in product(places, bads, ({}, memory)):
            values = vector("gaussian", layout.count)
            values[place] = bad
            if codec.lossless:
                payload, _ = codec.encode(values, layout, start, SENDING)
                assert bits(codec.decode(payload, layout, values.dtype)) == bits(values)
            else:
                with pytest.raises(NotFinite, match="not finite"):
                    codec.encode(values, layout, start, SENDING)
        assert image(memory) == before


@pytest.mark.parametrize("form", [form for form in PLAIN if form in LOSSY])
@pytest.mark.parametrize("place", [0, BIG // 2, BIG - 1])
def test_one_nan_in_a_big_vector_is_seen(form: str, place: int) -> None:
    values = torch.zeros(BIG)
    values[place] = float("nan")
    with pytest.raises(NotFinite):
        parse(form).encode(values, Layout.vector(BIG), {}, SENDING)


@pytest.mark.parametrize("form", LOSSY)
def test_a_double_beyond_single_precision_is_not_finite(form: str) -> None:
    with pytest.raises(NotFinite):
        parse(form).encode(
            torch.tensor([1.0, -1e300, 2.0], dtype=torch.float64), Layout.vector(3), {}, SENDING
        )


@every_form
def test_the_largest_numbers_never_become_infinite(form: str) -> None:
    codec = parse(form)
    for layout, factor in product(LAYOUTS.values(), (1.0, 0.5, 1e-4)):
        values = torch.full((layout.count,), torch.finfo(torch.float32).max * factor)
        values[::2] *= -1
        try:
            payload, after = codec.encode(values, layout, {}, SENDING)
        except NotFinite:
            assert factor > 1e-4
            continue
        assert codec.decode(payload, layout, torch.float32).isfinite().all()
        assert all(tensor.isfinite().all() for tensor in after.values())


# ---- payloads ----


@every_bare_form
@every_dtype
def test_what_is_decoded_lies_in_aligned_memory_of_its_own(form: str, dtype: torch.dtype) -> None:
    codec, layout = parse(form), LAYOUTS["net"]
    payload, _ = codec.encode(vector("gaussian", layout.count, dtype), layout, {}, SENDING)
    kept = bytes(bytearray(payload))
    shifted = memoryview(b"\0" + payload)[1:]  # as bytes lie in a message that came over a network
    first, second = (codec.decode(content, layout, dtype) for content in (payload, shifted))
    assert bits(first) == bits(second)
    assert first.data_ptr() % 64 == second.data_ptr() % 64 == 0
    before = bits(second)
    first.mul_(3).add_(1)
    assert payload == kept and bytes(shifted) == kept and bits(second) == before
    assert bits(codec.decode(payload, layout, dtype)) == before


@every_bare_form
@every_dtype
def test_what_is_cut_or_prolonged_is_refused(form: str, dtype: torch.dtype) -> None:
    codec = parse(form)
    for size, kind in product((0, 1, 100, 1025), ("gaussian", "constant")):
        layout = Layout.vector(size)
        payload, _ = codec.encode(vector(kind, size, dtype), layout, {}, SENDING)
        for wrong in (payload[:-1], payload[1:], payload + b"\0", payload * 2, b""):
            if wrong != payload:
                with pytest.raises(PayloadError):
                    codec.decode(wrong, layout, dtype)


@every_bare_form
def test_a_payload_of_another_layout_is_refused_or_gives_the_right_shape(form: str) -> None:
    codec = parse(form)
    payload, _ = codec.encode(vector("gaussian", 1000), Layout.vector(1000), {}, SENDING)
    for count in (0, 1, 999, 1001, 2000):
        try:
            decoded = codec.decode(payload, Layout.vector(count), torch.float32)
        except PayloadError:
            continue
        assert decoded.shape == (count,)


# ---- anything at all ----

numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize("form", PLAIN + STAGED)
@settings(max_examples=15)
@given(values=st.lists(numbers, max_size=40))
@example(values=[1e-45, -1e-45, 0.0])
@example(values=[-0.0])
def test_any_vector_comes_back_or_is_not_finite(form: str, values: list[float]) -> None:
    codec, layout = parse(form), Layout.vector(len(values))
    sent = torch.tensor(values, dtype=torch.float32)
    try:
        payload, _ = codec.encode(sent, layout, {}, SENDING)
    except NotFinite:
        assert not codec.lossless
        assert not np.isfinite(sent.numpy()).all() or float(sent.abs().max()) > 1e37
        return
    decoded = codec.decode(payload, layout, torch.float32)
    if codec.lossless:
        assert bits(decoded) == bits(sent)
    else:
        assert decoded.isfinite().all() and sent.isfinite().all()


@pytest.mark.parametrize("form", PLAIN + STAGED)
@settings(max_examples=30)
@given(data=st.data())
def test_any_bytes_are_a_payload_or_are_refused(form: str, data: st.DataObject) -> None:
    codec = parse(form)
    layout = data.draw(st.sampled_from([Layout.vector(1), Layout.vector(37), LAYOUTS["net"]]))
    if data.draw(st.booleans()):
        wrong = bytearray(codec.encode(vector("gaussian", layout.count), layout, {}, SENDING)[0])
        for _ in range(data.draw(st.integers(1, 3))):
            wrong[data.draw(st.integers(0, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    else:
        draws = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        wrong = bytearray(draws.bytes(codec.bound(layout, torch.float32) - data.draw(st.integers(0, 1))))
    try:
        decoded = codec.decode(bytes(wrong), layout, torch.float32)
    except PayloadError:
        return
    assert decoded.shape == (layout.count,)
    assert codec.lossless or decoded.isfinite().all()


# ---- no compression, number by number ----


def test_raw_is_little_endian_and_nothing_else() -> None:
    layout, payload = Layout.vector(2), bytes.fromhex("0000803f000000c0")
    assert Raw().encode(torch.tensor([1.0, -2.0]), layout, {}, SENDING) == (payload, {})
    assert Raw().decode(payload, layout, torch.float32).tolist() == [1, -2]
    double = torch.tensor([1.0], dtype=torch.float64)
    assert Raw().encode(double, Layout.vector(1), {}, SENDING)[0] == bytes.fromhex("000000000000f03f")


@every_dtype
@pytest.mark.parametrize(("shift", "same"), [(0, True), (64, True), (32, False), (1, False)])
def test_raw_becomes_writable_memory_where_it_is_aligned(dtype: torch.dtype, shift: int, same: bool) -> None:
    values, layout = vector("gaussian", 37, dtype), Layout.vector(37)
    memory = torch.zeros(shift + values.nbytes, dtype=torch.uint8)
    view = memoryview(memory.numpy())[shift:]
    view[:] = Raw().encode(values, layout, {}, SENDING)[0]
    decoded = Raw().decode(view, layout, dtype)
    assert bits(decoded) == bits(values) and decoded.data_ptr() % 64 == 0
    assert (decoded.data_ptr() == memory.data_ptr() + shift) == same
    decoded.zero_()
    assert (bits(Raw().decode(view, layout, dtype)) != bits(values)) == same


@every_dtype
@pytest.mark.parametrize("form", [form for form in FORMS if form not in LOSSY])
def test_special_values_are_sent_exactly(form: str, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, info.max, info.tiny, info.tiny / 2]
    values = torch.tensor(special * 10, dtype=dtype)
    payload, _ = parse(form).encode(values, Layout.vector(80), {}, SENDING)
    assert bits(parse(form).decode(payload, Layout.vector(80), dtype)) == bits(values)
