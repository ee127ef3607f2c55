"""Codecs that send few coordinates: selection, index coding, and what each format says, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from edgewise.codecs import bits, indices, select
from edgewise.codecs.base import Codec, Floats, Memory, NotFinite, PayloadError, Sending
from edgewise.codecs.dgc import DGC
from edgewise.codecs.feedback import Feedback
from edgewise.codecs.randomk import RandomK, draw
from edgewise.codecs.stc import STC
from edgewise.codecs.topk import TopK
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

TEN = torch.tensor([0.5, -4, 0, 0, 2, 0, 0, -1, 0, 0])  # its largest three: at 1, 4 and 7
LARGEST = float(np.finfo(np.float32).max)

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Few different numbers make ties; zeros of both signs are ties too.
vectors = st.one_of(
    st.lists(float32s, min_size=1, max_size=60),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45]), min_size=1, max_size=60),
)
shares = st.floats(0.01, 1)


def encode(codec: Codec, vector: Tensor, sending: Sending | None = None) -> bytes:
    return codec.encode(vector, Layout.vector(len(vector)), {}, sending or Sending())[0]


def decode(codec: Codec, payload: bytes, n: int) -> Tensor:
    return codec.decode(payload, Layout.vector(n), torch.float32)


def there_and_back(codec: Codec, vector: Tensor, sending: Sending | None = None) -> Tensor:
    return decode(codec, encode(codec, vector, sending), len(vector))


def squared(vector: Tensor) -> float:
    return float(vector.double().square().sum())


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


# ---- bits ----


def written_out(values: NDArray[np.int64], width: int) -> bytes:
    """The same by the definition, bit by bit."""
    spread = (values[:, None] >> np.arange(width)) & 1
    return np.packbits(spread.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def test_the_definition_by_hand() -> None:
    values = np.array([1, 2, 3, 0, 2], np.uint8)
    assert bits.pack(values, 2).tobytes() == written_out(values, 2) == bytes([0b00_11_10_01, 0b10])
    assert bits.pack(values, 4).tobytes() == bytes.fromhex("210302")
    assert bits.pack(np.array([1, 0, 0, 1, 0, 0, 0, 0, 1], np.uint8), 1).tobytes() == bytes.fromhex("0901")
    assert bits.pack_wide(values.astype(np.int64), 12).tobytes() == bytes.fromhex("0120000300000200")


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 9, 1000, 300_001])
def test_small_values_are_packed_by_the_definition(width: int, count: int) -> None:
    values = np.random.default_rng(count).integers(0, 1 << width, count, np.uint8)
    packed = bits.pack(values, width)
    assert packed.dtype == np.uint8 and len(packed) == bits.packed_size(count, width)
    assert packed.tobytes() == written_out(values, width)
    assert np.array_equal(bits.unpack(packed, width, count), values)


@pytest.mark.parametrize("width", range(33))
@pytest.mark.parametrize("count", [0, 1, 9, (1 << 15) + 3])
def test_wide_values_are_packed_by_the_definition(width: int, count: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << 32, count)
    packed = bits.pack_wide(values, width)
    assert packed.tobytes() == written_out(values, width)
    assert np.array_equal(bits.unpack_wide(packed, width, count), values & ((1 << width) - 1))


@pytest.mark.parametrize("unpack", [bits.unpack, bits.unpack_wide])
def test_padding_and_length_of_packed_values_are_checked(unpack: Callable[..., object]) -> None:
    for wrong in (b"\x40", b"", b"\0\0"):
        with pytest.raises(PayloadError):
            unpack(np.frombuffer(wrong, np.uint8), 2, 3)


# ---- indices ----


def test_indices_by_hand() -> None:
    # k = 3, n = 10: one low bit each, 1 0 1; bits 0 + 0, 2 + 1 and 3 + 2 of the bitmap.
    assert indices.encode(np.array([1, 4, 7]), 10) == bytes([0b101, 0b101001])
    assert indices.size(3, 10) == 2


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (0, 0, 0),
        (0, 5, 0),
        (1, 1, 1),  # no low bit; 1 bit of bitmap
        (8, 8, 2),  # no low bit; 8 + 7 bits
        (1, 1000, 3),  # 9 low bits; 1 + 1
        (10, 1000, 8 + 4),  # 6 low bits each; 10 + 15 bits
        (111_700, 11_170_000, 83_775 + 35_779),  # 6 low bits each; 111,700 + 174,531 bits
    ],
)
def test_size_of_indices_by_hand(k: int, n: int, expected: int) -> None:
    assert indices.size(k, n) == expected


@given(st.data(), st.integers(0, 300))
@settings(max_examples=100)
def test_indices_come_back_in_the_predicted_size(data: st.DataObject, n: int) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, n - 1)))) if n else []
    payload = indices.encode(np.array(chosen, np.int64), n)
    assert len(payload) == indices.size(len(chosen), n)
    assert indices.decode(payload, len(chosen), n).tolist() == chosen


@pytest.mark.parametrize("n", [1, 2, 9, 300_000, (1 << 31) + 5, (1 << 34) + 5])
def test_indices_at_the_edges(n: int) -> None:
    for chosen in ([0], [n - 1], [0, n - 1][: min(n, 2)], list(range(min(n, 9)))):
        payload = indices.encode(np.array(chosen), n)
        assert indices.decode(memoryview(payload), len(chosen), n).tolist() == chosen


@given(st.data(), st.integers(0, 40))
@settings(max_examples=300)
def test_bytes_are_indices_in_one_way_or_none(data: st.DataObject, n: int) -> None:
    k = data.draw(st.integers(0, n))
    payload = data.draw(st.binary(min_size=indices.size(k, n), max_size=indices.size(k, n)))
    try:
        decoded = indices.decode(payload, k, n)
    except PayloadError:
        return
    assert indices.encode(decoded, n) == payload


@pytest.mark.parametrize(
    "wrong",
    [
        "052900",  # too long
        "05",  # too short
        "0d29",  # padding of the low bits
        "05a9",  # padding of the bitmap
        "0509",  # two ones
        "052b",  # four ones
        "0507",  # 1, 0, 1: out of order
    ],
)
def test_what_is_no_set_of_indices_is_refused(wrong: str) -> None:
    with pytest.raises(PayloadError):
        indices.decode(bytes.fromhex(wrong), 3, 10)


def test_an_index_out_of_range_is_refused() -> None:
    legal = bytes([0b101, 0b1010001])  # as long for 9 values as for 10
    assert indices.decode(legal, 3, 10).tolist() == [1, 6, 9]
    with pytest.raises(PayloadError):
        indices.decode(legal, 3, 9)


# ---- selection ----


def by_sorting(values: Floats, k: int) -> NDArray[np.int64]:
    """The k largest magnitudes, the first of equal ones, from a stable sort."""
    return np.sort(np.argsort(-np.abs(values), kind="stable")[:k])


@given(vectors, shares)
@settings(max_examples=100)
def test_the_largest_of_a_short_vector(numbers: list[float], share: float) -> None:
    values = np.array(numbers, np.float32)
    k = select.count(share, len(values))
    assert select.largest(values, k).tolist() == by_sorting(values, k).tolist()


@given(st.integers(0, 10_000), st.sampled_from([3, 10, 1000]), st.floats(0, 1), shares)
@settings(max_examples=200)
def test_the_largest_by_a_small_sample(seed: int, levels: int, zeros: float, share: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-levels, levels, 400).astype(np.float32) ** 3
    values[rng.random(400) < zeros] = 0
    k = select.count(share, 400)
    with patch.object(select, "SAMPLE", 61), patch.object(select, "CHUNK", 64):
        assert select.largest(values, k).tolist() == by_sorting(values, k).tolist()


LONG = 3 * select.SAMPLE
PLACES = np.arange(LONG)
SAMPLED = np.arange(select.SAMPLE) * LONG // select.SAMPLE
RNG = np.random.default_rng(0)
DISTRIBUTIONS: dict[str, NDArray[np.float64]] = {
    "normal": RNG.standard_normal(LONG),
    "heavy tails": RNG.standard_cauchy(LONG),
    "tiny": RNG.standard_normal(LONG) * 1e-42,
    "near the maximum": RNG.uniform(-1, 1, LONG) * LARGEST,
    "constant": np.full(LONG, -3.0),
    "zeros": np.zeros(LONG),
    "mostly zeros": np.where(RNG.random(LONG) < 0.002, RNG.standard_normal(LONG), 0),
    "zeros, then few": np.where(PLACES > LONG - 9, 1.0, -0.0),
    "few, then zeros": np.where(PLACES < 9, 1.0, 0.0),
    "rising": PLACES * 1.0,
    "falling": -1.0 * PLACES[::-1],
    "few levels": RNG.integers(0, 3, LONG) * 1.0,
    "halves": np.where(PLACES < LONG // 2, 1e-6, 1e6) * RNG.standard_normal(LONG),
    "large where sampled": np.isin(PLACES, SAMPLED) + RNG.random(LONG),
    "small where sampled": 1.0 - np.isin(PLACES, SAMPLED) + RNG.random(LONG),
    "period of nine": (PLACES % 9 == 4) * RNG.random(LONG),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("share", [1e-9, 0.001, 0.01, 0.3, 1])
def test_the_largest_of_a_long_vector(name: str, share: float) -> None:
    values = DISTRIBUTIONS[name].astype(np.float32)
    k = select.count(share, LONG)
    kept = select.largest(values, k)
    assert np.array_equal(kept, by_sorting(values, k))
    top = torch.from_numpy(np.abs(values)).topk(k).values
    assert torch.equal(torch.from_numpy(np.abs(values[kept])).sort(descending=True).values, top)


def test_the_sample_is_used_and_gives_up() -> None:
    def used(name: str, share: float) -> bool:
        values = DISTRIBUTIONS[name].astype(np.float32)
        return select._candidates(values, select.count(share, LONG)) is not None

    assert used("normal", 0.01) and used("normal", 0.3) and used("mostly zeros", 0.01)
    assert not used("constant", 0.01) and not used("small where sampled", 0.5)
    assert not used("large where sampled", 0.9)


@pytest.mark.parametrize("n", [1, 10, LONG])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", [TopK(), STC(), RandomK(), DGC()], ids=repr)
def test_one_number_that_is_not_finite_is_found(codec: Codec, n: int, value: float) -> None:
    for place in {0, n // 3, n - 1}:
        vector = normal(n)
        vector[place] = value
        with pytest.raises(NotFinite):
            encode(codec, vector)
    with pytest.raises(NotFinite):
        encode(codec, torch.full((n,), 1e300, dtype=torch.float64))


@pytest.mark.parametrize(
    ("share", "n", "k"), [(0.01, 0, 0), (0.01, 1, 1), (0.01, 149, 1), (0.01, 151, 2), (1, 7, 7), (0.3, 10, 3)]
)
def test_how_many_are_kept(share: float, n: int, k: int) -> None:
    assert select.count(share, n) == k


# ---- formats ----

BY_HAND: list[tuple[Codec, str]] = [
    (TopK(0.3), "0529 000080c0 00000040 000080bf"),  # -4, 2, -1
    (TopK(0.3, bits=16), "0529 00008040 00bc 0038 00b4"),  # 4 times -1, 0.5, -0.25
    (TopK(0.3, bits=8), "0529 00008040 81 40 e0"),  # 4 / 127 times -127, 64 (from 63.5), -32 (from -31.75)
    (STC(0.3), "0529 05 55551540"),  # minus, plus, minus; 7 / 3
    (RandomK(1), "efcdab8967452301" + TEN.numpy().astype("<f4").tobytes().hex()),
    (DGC(0.3, warmup=0), "03000000 0529 000080c0 00000040 000080bf"),
]


@pytest.mark.parametrize(("codec", "payload"), BY_HAND, ids=lambda value: repr(value)[:40])
def test_payloads_by_hand(codec: Codec, payload: str) -> None:
    assert encode(codec, TEN, Sending(key=0x0123456789ABCDEF)) == bytes.fromhex(payload)
    assert codec.bound(Layout.vector(10), torch.float32) == len(bytes.fromhex(payload))


@pytest.mark.parametrize(
    ("codec", "decoded"),
    [
        (TopK(0.3), [-4, 2, -1]),
        (TopK(0.3, bits=16), [-4, 2, -1]),
        (TopK(0.3, bits=8), [-4, 256 / 127, -128 / 127]),
        (STC(0.3), [-7 / 3, 7 / 3, -7 / 3]),
        (DGC(0.3, warmup=0), [-4, 2, -1]),
    ],
    ids=repr,
)
def test_decoded_by_hand(codec: Codec, decoded: list[float]) -> None:
    expected = torch.zeros(10)
    expected[[1, 4, 7]] = torch.tensor(decoded, dtype=torch.float32)
    assert torch.equal(there_and_back(codec, TEN), expected)


@pytest.mark.parametrize(
    ("codec", "bytes_"),
    [
        (TopK(0.01), 12 + 40),  # 12 bytes of indices, see above
        (TopK(0.01, bits=16), 12 + 4 + 20),
        (TopK(0.01, bits=8), 12 + 4 + 10),
        (STC(0.01), 12 + 2 + 4),
        (RandomK(0.01), 8 + 40),
        (DGC(0.01, warmup=0), 4 + 12 + 40),
        (DGC(0.01), 4 + 63 + 63 + 1000),  # 250 values: 2 low bits each, 250 + 249 of the bitmap
        (DGC(0.5), 4 + 63 + 125 + 2000),  # no warm-up from below: 1 low bit each, 500 + 499
    ],
    ids=repr,
)
def test_sizes_by_hand(codec: Codec, bytes_: int) -> None:
    assert codec.bound(Layout.vector(1000), torch.float32) == bytes_
    assert len(encode(codec, normal(1000))) == bytes_


CODECS: list[Codec] = [
    *(TopK(0.2, bits) for bits in (32, 16, 8)),
    STC(0.2),
    RandomK(0.2),
    *(DGC(0.05, bits=bits) for bits in (32, 8)),
]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@given(data=st.data())
@settings(max_examples=100)
def test_any_bytes_are_a_finite_vector_or_no_payload(codec: Codec, data: st.DataObject) -> None:
    n = data.draw(st.sampled_from([0, 1, 5, 40]))
    payload = bytearray(encode(codec, normal(n)))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(0, len(payload) - 1)))
        payload[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
    wanted = payload if data.draw(st.booleans()) else data.draw(st.binary(max_size=90))
    try:
        decoded = decode(codec, bytes(wanted), n)
    except PayloadError:
        return
    assert decoded.shape == (n,) and bool(decoded.isfinite().all())


REFUSED: list[tuple[Codec, str]] = [
    (TopK(0.3), "0529 0000c07f 00000040 000080bf"),  # NaN
    (TopK(0.3), "0529 000080ff 00000040 000080bf"),  # -infinity
    (TopK(0.3), "0507 000080c0 00000040 000080bf"),  # indices out of order
    (TopK(0.3, bits=16), "0529 00008040 017c 0038 00b4"),  # a signalling NaN
    (TopK(0.3, bits=16), "0529 00008040 013c 0038 00b4"),  # above 1
    (TopK(0.3, bits=16), "0529 000080c0 00bc 0038 00b4"),  # a negative scale
    (TopK(0.3, bits=16), "0529 0000807f 00bc 0038 00b4"),  # an infinite scale
    (TopK(0.3, bits=16), "0529 0100807f 00bc 0038 00b4"),  # a scale that is a signalling NaN
    (TopK(0.3, bits=8), "0529 00008040 80 40 e0"),  # -128
    (STC(0.3), "0529 0d 55551540"),  # padding of the signs
    (STC(0.3), "0529 05 555515c0"),  # a negative mean
    (STC(0.3), "0529 05 0000807f"),  # an infinite mean
    (STC(0.3), "0529 05 0100807f"),  # a signalling NaN
    (STC(0.3), "0507 05 55551540"),  # indices out of order
    (RandomK(0.1), "0000000000000000 0000807f"),  # infinity
    (DGC(0.1), "00000000"),  # fewer than the last share
    (DGC(0.1), "03000000 0529 000080c0 00000040 000080bf"),  # more than the first: 2 of 10
    (DGC(0.1), "ffffffff"),
    (DGC(0.1), "0100"),
]


@pytest.mark.parametrize(("codec", "payload"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_no_encoder_writes_is_refused(codec: Codec, payload: str) -> None:
    with pytest.raises(PayloadError):
        decode(codec, bytes.fromhex(payload), 10)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_the_largest_and_the_smallest_numbers_stay_finite(codec: Codec) -> None:
    for size in (LARGEST, float(np.finfo(np.float32).tiny), 1e-45, 0.0):
        vector = torch.tensor([size, -size, size, -size, size])
        for fed in (False, True):
            decoded = there_and_back(codec, vector, Sending(fed=fed))
            assert bool(decoded.isfinite().all())
            if fed:  # what is sent, is sent right, at either end of the range
                assert bool(((decoded == vector) | (decoded == 0)).all())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TopK(0),
        lambda: TopK(1.5),
        lambda: TopK(math.nan),
        lambda: TopK(bits=12),
        lambda: STC(-0.1),
        lambda: RandomK(0.0),
        lambda: DGC(2.0),
        lambda: DGC(momentum=1.0),
        lambda: DGC(momentum=-0.1),
        lambda: DGC(warmup=-1),
        lambda: DGC(bits=0),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: Callable[[], Codec]) -> None:
    with pytest.raises(EdgewiseError, match=r"codec \w+: \w+ is .*; legal: "):
        wrong()


# ---- top-k and sparse ternary ----


@given(vectors, shares)
@settings(max_examples=100)
def test_topk_is_a_contraction(numbers: list[float], share: float) -> None:
    vector = torch.tensor(numbers)
    k = select.count(share, len(vector))
    error, norm = squared(vector - there_and_back(TopK(share), vector)), squared(vector)
    assert error <= (1 - k / len(vector)) * norm * (1 + 1e-12)


@pytest.mark.parametrize(("width", "unit"), [(16, 2**-11), (8, 1 / 254)])
def test_rounded_values_are_off_by_half_a_unit_at_most(width: int, unit: float) -> None:
    vector = normal(1000) ** 3
    exact, rounded = (there_and_back(TopK(0.5, bits), vector) for bits in (32, width))
    scale = float(vector.abs().max())
    assert 0 < float((exact - rounded).abs().max()) <= unit * scale * (1 + 1e-6)
    assert rounded.abs().max() == scale


def test_the_mean_of_the_largest_numbers_is_one_of_them() -> None:
    vector = torch.tensor([LARGEST, -LARGEST, LARGEST])
    assert torch.equal(there_and_back(STC(1), vector), vector)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), shares)
@settings(max_examples=100)
def test_what_stc_gains_is_its_mean_squared_k_times(numbers: list[float], share: float) -> None:
    vector = torch.tensor(numbers)
    k = select.count(share, len(vector))
    mean = float(vector.double().abs().topk(k).values.mean())
    error, norm = squared(vector.double() - there_and_back(STC(share), vector).double()), squared(vector)
    assert error == pytest.approx(norm - k * mean**2, rel=1e-5, abs=norm * 1e-5 + 1e-80)
    assert error <= norm


# ---- random-k ----


def test_draws_by_hand() -> None:
    """The upper 64 bits of raw * length, in Python's integers; and the generator is the one we knew."""
    raw = [int(word) for word in np.random.SFC64(7).random_raw(4)]
    assert raw[0] == 809084925512801999
    edges = [0, 2, 5, 7, 10]
    expected = [
        start + (word * (stop - start) >> 64)
        for start, stop, word in zip(edges[:4], edges[1:], raw, strict=True)
    ]
    places, lengths = draw((7).to_bytes(8, "little"), 4, 10)
    assert places.tolist() == expected and lengths.tolist() == [2, 3, 2, 3]
    length = (1 << 32) - 1  # as long as may be: all 64 bits matter
    for seed in range(20):
        raw = [int(np.random.SFC64(seed).random_raw())]
        assert draw(seed.to_bytes(8, "little"), 1, length)[0].tolist() == [raw[0] * length >> 64]


@pytest.mark.parametrize(("k", "n"), [(1, (1 << 32) - 1), (3, 1 << 33), (5, 5), (1, 1), (1000, 1500)])
def test_draws_keep_to_their_stretches(k: int, n: int) -> None:
    for seed in range(20):
        places, lengths = draw(seed.to_bytes(8, "little"), k, n)
        starts = np.cumsum(lengths) - lengths
        assert lengths.sum() == n and ((starts <= places) & (places < starts + lengths)).all()


def test_randomk_is_unbiased() -> None:
    """10,000 sendings: a coordinate whose mean is off by a tenth is found with probability 0.9 or more.

    A coordinate x of a stretch of L comes as L * x with probability 1 / L: standard deviation
    |x| * sqrt(L - 1), L is 3 or 4, so that a tenth is 5.8 standard errors or more, of which 4.5 are allowed.
    """
    vector, codec, sendings = normal(47) + 3, RandomK(0.3), 10_000
    total = torch.zeros(47, dtype=torch.float64)
    for key in range(sendings):
        total += there_and_back(codec, vector, Sending(key=key))
    _, lengths = draw(bytes(8), 14, 47)
    share = torch.from_numpy(np.repeat(lengths, lengths))
    error = (vector.double().abs() * (share - 1).sqrt()) / math.sqrt(sendings)
    assert set(lengths.tolist()) == {3, 4}
    assert float(((total / sendings - vector) / error).abs().max()) < 4.5


def test_randomk_with_feedback_around_leaves_out_what_it_does_not_send() -> None:
    vector, codec = normal(1000), RandomK(0.1)
    errors = []
    for key in range(200):
        decoded = there_and_back(codec, vector, Sending(key=key, fed=True))
        kept = decoded != 0
        assert int(kept.sum()) == 100 and torch.equal(decoded[kept], vector[kept])
        errors.append(squared(vector - decoded))
    assert np.mean(errors) == pytest.approx(0.9 * squared(vector), rel=0.01)


def test_randomk_draws_anew_by_the_key_alone() -> None:
    vector = normal(1000)
    assert encode(RandomK(), vector, Sending(key=1)) == encode(RandomK(), vector, Sending(key=1))
    assert encode(RandomK(), vector, Sending(key=1)) != encode(RandomK(), vector, Sending(key=2))


# ---- deep gradient compression ----


def test_two_sendings_of_dgc_by_hand() -> None:
    codec, layout = DGC(0.5, momentum=0.5, warmup=0), Layout.vector(2)
    # At rate 0.5: u = (4, 3), owed (2, 1.5); 4 is sent for the first.
    payload, memory = codec.encode(torch.tensor([4.0, 3.0]), layout, {}, Sending(rate=0.5))
    assert payload == bytes.fromhex("01000000 00 01 00008040")
    assert memory["velocity"].tolist() == [0, 3] and memory["residual"].tolist() == [0, 1.5]
    # At rate 0.25: u = (1, 2 + 1.5), owed (0.25, 1.5 + 0.875), which is (1, 9.5) times the rate.
    payload, memory = codec.encode(torch.tensor([1.0, 2.0]), layout, memory, Sending(rate=0.25))
    assert payload == bytes.fromhex("01000000 01 01 00001841")
    assert memory["velocity"].tolist() == [1, 0] and memory["residual"].tolist() == [0.25, 0]


def send(codec: Codec, gradients: list[Tensor], rates: list[float]) -> tuple[list[Tensor], Memory]:
    """What arrives, sending by sending, and the last memory."""
    layout, memory, arrived = Layout.vector(len(gradients[0])), {}, []
    for gradient, rate in zip(gradients, rates, strict=True):
        before = {name: tensor.clone() for name, tensor in memory.items()}
        payload, after = codec.encode(gradient, layout, memory, Sending(rate=rate))
        assert all(torch.equal(before[name], memory[name]) for name in before)
        assert len(payload) <= codec.bound(layout, gradient.dtype)
        arrived.append(codec.decode(payload, layout, gradient.dtype))
        memory = after
    return arrived, memory


GRADIENTS = [normal(500, seed) for seed in range(50)]
RATES = [0.1 + 0.9 * math.sin(number / 5) ** 2 for number in range(50)]


@pytest.mark.parametrize(
    "codec", [DGC(0.02, warmup=20, momentum=0.9), DGC(0.02, warmup=0, bits=8, momentum=0.9)], ids=repr
)
def test_dgc_loses_nothing(codec: DGC) -> None:
    """What arrived and what is owed are the steps of the velocity, which is cut where it was sent."""
    arrived, memory = send(codec, GRADIENTS, RATES)
    velocity, steps, got = (torch.zeros(500, dtype=torch.float64) for _ in range(3))
    for gradient, rate, sent in zip(GRADIENTS, RATES, arrived, strict=True):
        velocity = codec.momentum * velocity + gradient
        steps += rate * velocity
        got += rate * sent
        velocity[sent != 0] = 0
    assert torch.allclose(got + memory["residual"], steps, rtol=1e-5, atol=1e-5)
    assert torch.allclose(memory["velocity"].double(), velocity, rtol=1e-5, atol=1e-5)
    assert squared(memory["residual"]) > 1


def test_a_place_that_dgc_never_sends_is_owed_the_steps_of_plain_momentum() -> None:
    quiet = [torch.cat([gradient[:1] * 1e-3, gradient[1:] + 9]) for gradient in GRADIENTS]
    arrived, memory = send(DGC(0.5, warmup=0, momentum=0.9), quiet, RATES)
    assert all(sent[0] == 0 for sent in arrived)
    velocity = steps = 0.0
    for gradient, rate in zip(quiet, RATES, strict=True):
        velocity = 0.9 * velocity + float(gradient[0])
        steps += rate * velocity
    assert float(memory["residual"][0]) == pytest.approx(steps, rel=1e-4)


def test_dgc_that_sends_everything_has_no_momentum() -> None:
    """Its velocity is cut everywhere, every time."""
    arrived, _ = send(DGC(1.0, momentum=0.9), GRADIENTS[:5], [1.0] * 5)
    assert all(torch.equal(sent, gradient) for sent, gradient in zip(arrived, GRADIENTS[:5], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [32, 16, 8])
def test_dgc_without_momentum_is_topk_with_feedback(width: int, dtype: torch.dtype) -> None:
    gradients = [gradient.to(dtype) / 3 for gradient in GRADIENTS[:10]]
    plain, known = send(Feedback(TopK(0.05, width)), gradients, [1.0] * 10)
    deep, memory = send(DGC(0.05, warmup=0, bits=width), gradients, [1.0] * 10)
    assert all(torch.equal(one, other) for one, other in zip(plain, deep, strict=True))
    assert memory.keys() == known.keys() == {"residual"}
    assert memory["residual"].numpy().tobytes() == known["residual"].numpy().tobytes()


def test_a_rate_of_zero_moves_nothing_but_the_velocity() -> None:
    codec, layout = DGC(0.1, warmup=0, momentum=0.9), Layout.vector(500)
    _, memory = send(codec, GRADIENTS[:3], RATES[:3])
    payload, after = codec.encode(GRADIENTS[3], layout, memory, Sending(rate=0))
    assert torch.equal(after["residual"], memory["residual"])
    velocity = GRADIENTS[3].add(memory["velocity"], alpha=0.9)
    assert torch.equal(after["velocity"], velocity)
    assert torch.equal(
        codec.decode(payload, layout, torch.float32) != 0, there_and_back(TopK(0.1), velocity) != 0
    )


def test_the_warm_up_falls_from_a_quarter_to_the_share() -> None:
    codec, layout, memory, counts = DGC(0.001, warmup=4), Layout.vector(10_000), {}, []
    for _ in range(6):
        payload, memory = codec.encode(normal(10_000), layout, memory, Sending())
        counts.append(int.from_bytes(payload[:4], "little"))
        assert memory["sendings"].dtype == torch.int64
    # A quarter of 10,000, times the fourth root of 1 / 250, 0.2515, at each of four sendings.
    assert counts == [2500, 629, 158, 40, 10, 10]
    assert int(memory["sendings"]) == 6


@given(st.floats(0.001, 0.3), st.integers(1, 200), st.sampled_from([8, 16, 32]))
@settings(max_examples=20)
def test_no_payload_of_dgc_is_longer_than_its_bound(share: float, n: int, width: int) -> None:
    codec = DGC(share, warmup=7, bits=width)
    lengths = [len(encode(replace(codec, warmup=0, share=k / n), normal(n))) for k in range(1, n + 1)]
    most = select.count(max(share, 0.25), n)
    assert max(lengths[:most]) == codec.bound(Layout.vector(n), torch.float32)
