"""Codecs that send every value with few bits: what each format says, byte for byte, and what its error is."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgewise.codecs import blocks
from edgewise.codecs.base import Codec, PayloadError, Sending
from edgewise.codecs.half import Half
from edgewise.codecs.integers import Int4, Int8
from edgewise.codecs.levels import LEVELS, Levels, hadamard, random_signs
from edgewise.codecs.qsgd import QSGD
from edgewise.codecs.sign import Sign
from edgewise.codecs.ternary import Ternary
from edgewise.codecs.uniform import Uniform
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout

FED, ALONE = Sending(key=1, fed=True), Sending(key=1)
LARGEST = float(np.finfo(np.float32).max)
ROTATED = [Levels(bits, rotate=True) for bits in (1, 2, 4)]
BY_BLOCK = [Int8(), Int4(), Ternary(), Sign(), Levels(1), Levels(2), Levels(4)]  # inside feedback: no draws
RANDOM = [QSGD(2), QSGD(4), QSGD(8)]
EVERY = [Half(), Half(bf16=True), *BY_BLOCK, *ROTATED, *RANDOM]
SIZE = {Int8: 512, Int4: 512, Ternary: 1280, Sign: 1024, Levels: 1024, QSGD: 256}  # of a block


def encode(codec: Codec, vector: Tensor, sending: Sending = FED) -> bytes:
    return codec.encode(vector, Layout.vector(len(vector)), {}, sending)[0]


def decode(codec: Codec, payload: bytes, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return codec.decode(payload, Layout.vector(count), dtype)


def there_and_back(codec: Codec, vector: Tensor, sending: Sending = FED) -> Tensor:
    return decode(codec, encode(codec, vector, sending), len(vector))


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def heavy(count: int) -> Tensor:
    """Student's t with two degrees of freedom, roughly: a few values far above the rest."""
    return normal(count) / torch.rand(count, generator=torch.Generator().manual_seed(1)).clamp(1e-4).sqrt()


def lost(vector: Tensor, decoded: Tensor) -> float:
    """The squared error as a share of the vector's squared norm."""
    exact = vector.double()
    return float((decoded.double() - exact).square().sum() / exact.square().sum())


# ---- the formats, by hand ----

PAYLOADS: list[tuple[Codec, list[float], float, str]] = [  # values, scale, codes
    (Int8(), [127, -127, 3.4, 0], 1, "7f 81 03 00"),
    (Int4(), [7, -7, 2.6], 1, "97 03"),
    (QSGD(2), [1, -1, 0, 1, 1], 1, "4d 01"),  # 01 11 00 01 from the low end, then 01
    (QSGD(4), [7, -7, 3], 1, "97 03"),
    (QSGD(8), [127, -127, 3, 0], 1, "7f 81 03 00"),
    (Ternary(), [4, -5, 1, 0, 0, 3], 4, "07 01"),  # above 0.7 * 13 / 6; 1 + 3 * 2, then 1
    (Ternary(), [0, 0, 0, 0, -4], 4, "a2"),  # 81 * 2
    (Sign(), [1, -2, 0, -0.0, 2, 1, 1, 1, -1], 1, "02 01"),
    (Levels(1), [1, -1, 1], 1 / 0.797884561, "02"),
    # Numbers 1, 0, 0, 1, 0 and 2 more where negative; the zero, too, is decoded as the smallest level.
    (Levels(2), [1.51, -0.45, 0.45, -1.51, 0], 4.96896 / 5.17775, "c9 00"),
    (Levels(4), [2.74, -0.13, 0.29, 0.29, 0.29, 0.29, 0.29, 0.29], 8.1792 / 8.3870, "87 11 11 11"),
]


@pytest.mark.parametrize(("codec", "values", "scale", "codes"), PAYLOADS, ids=repr)
def test_payload_by_hand(codec: Codec, values: list[float], scale: float, codes: str) -> None:
    payload = encode(codec, torch.tensor(values), ALONE)
    if isinstance(codec, Ternary):
        payload = encode(codec, torch.tensor(values), FED)
    assert struct.unpack("<f", payload[:4])[0] == pytest.approx(scale, rel=2e-5)
    assert payload[4:] == bytes.fromhex(codes)


@pytest.mark.parametrize(
    ("codec", "values", "expected"),
    [
        (Half(), [1, -2, 0.1, 1e9, -1e9], "003c 00c0 662e ff7b fffb"),
        (Half(bf16=True), [1, -2, 0.1, LARGEST], "803f 00c0 cd3d 7f7f"),
        (Int8(), [2.0] * 512 + [-1.0], "0402813c 0402013c" + "7f" * 512 + "81"),  # fp32 of 2/127 and 1/127
        (Sign(), [1.0] * 1024 + [-3.0], "0000803f 00004040" + "00" * 128 + "01"),
        (Levels(1, rotate=True), [0.0], "4802f668a6f4e0fe" + "00000000" + "00" * 128),
    ],
    ids=["fp16", "bf16", "int8", "sign", "rotated"],
)
def test_whole_payload_by_hand(codec: Codec, values: list[float], expected: str) -> None:
    """Scales before codes, all of it little-endian."""
    assert encode(codec, torch.tensor(values)) == bytes.fromhex(expected)


BOUNDS: list[tuple[Codec, int, int]] = [
    (Half(), 1025, 2050),
    (Int8(), 1025, 3 * 4 + 1025),
    (Int4(), 1025, 3 * 4 + 513),
    (QSGD(2), 1025, 5 * 4 + 257),
    (QSGD(4), 1025, 5 * 4 + 513),
    (QSGD(8), 1025, 5 * 4 + 1025),
    (Ternary(), 1281, 2 * 4 + 257),
    (Sign(), 1025, 2 * 4 + 129),
    (Levels(1), 1025, 2 * 4 + 129),
    (Levels(2), 1025, 2 * 4 + 257),
    (Levels(4), 1025, 2 * 4 + 513),
    (Levels(1, rotate=True), 1025, 8 + 2 * 4 + 256),  # whole blocks
    (Levels(4, rotate=True), 1025, 8 + 2 * 4 + 1024),
]


@pytest.mark.parametrize(("codec", "count", "expected"), BOUNDS, ids=repr)
def test_size(codec: Codec, count: int, expected: int) -> None:
    assert codec.bound(Layout.vector(count), torch.float64) == expected == len(encode(codec, normal(count)))
    assert codec.bound(Layout.vector(0), torch.float32) == (8 if codec in ROTATED else 0)


# ---- rounding ----


def test_half_rounds_to_the_nearest_and_ends_where_its_range_does() -> None:
    vector = torch.cat(
        [normal(70_000) * 10.0 ** torch.arange(-6, 1).repeat(10_000), torch.tensor([7e-8, -1e-9])]
    )
    for bf16, dtype in ((False, torch.float16), (True, torch.bfloat16)):
        assert torch.equal(there_and_back(Half(bf16), vector), vector.to(dtype).float())
        top = torch.finfo(dtype).max
        ends = torch.tensor(
            [LARGEST, -LARGEST, top, float(np.nextafter(np.float32(top), np.float32(LARGEST)))]
        )
        assert there_and_back(Half(bf16), ends).tolist() == [top, -top, top, top]


@pytest.mark.parametrize(("codec", "top"), [(Int8(), 127), (Int4(), 7)], ids=repr)
def test_integers_are_the_nearest(codec: Codec, top: int) -> None:
    vector = heavy(512 * 300)
    rows = vector.view(-1, 512)
    steps = rows.abs().amax(1, keepdim=True) / top
    decoded = there_and_back(codec, vector).view_as(rows)
    assert ((decoded - rows).abs() <= steps * 0.50001).all()
    assert ((decoded - rows).abs() <= rows.abs() * 1.00001).all()
    assert (decoded.abs().amax(1) / rows.abs().amax(1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_levels_are_the_nearest(bits: int) -> None:
    vector = normal(1024)
    decoded = there_and_back(Levels(bits), vector).double()
    level = torch.tensor([sign * level for level in LEVELS[bits] for sign in (1, -1)], dtype=torch.float64)
    distances = (vector.double()[:, None] / vector.double().square().mean().sqrt() - level).abs()
    chosen = level[distances.argmin(1)]
    scale = vector.double() @ chosen / (chosen @ chosen)
    assert torch.allclose(decoded, scale * chosen, rtol=1e-5)


# ---- the error ----


def by_block(codec: Codec, vector: Tensor) -> list[Tensor]:
    return list(vector.double().split(SIZE[type(codec)]))


def sign_error(x: Tensor) -> float:
    return float(x.square().sum() - x.abs().sum() ** 2 / len(x))


def ternary_error(x: Tensor) -> float:
    kept = x.abs() > 0.7 * x.abs().mean()
    return float(x.square().sum() - x[kept].abs().sum() ** 2 / kept.sum())


@pytest.mark.parametrize(
    ("codec", "error"),
    [(Sign(), sign_error), (Levels(1), sign_error), (Ternary(), ternary_error)],
    ids=["sign", "levels:1", "ternary"],  # a function's repr is another in each process
)
@pytest.mark.parametrize("vector", [normal(3000), heavy(3000)], ids=["normal", "heavy"])
def test_the_contraction_constant(codec: Codec, error: object, vector: Tensor) -> None:
    """||x||_1^2 / (n ||x||_2^2) of the norm is kept by a sign, the projection on what is kept by a trit."""
    assert callable(error)
    expected = sum(error(block) for block in by_block(codec, vector)) / float(vector.double().square().sum())
    assert lost(vector, there_and_back(codec, vector)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (Sign(), 1 - 2 / math.pi),
        (Ternary(), 0.1902),
        (Levels(1), 0.3634),  # the three are those of Max 1960
        (Levels(2), 0.1175),
        (Levels(4), 0.009497),
        (Levels(1, rotate=True), 0.3634),
        (Levels(2, rotate=True), 0.1175),
        (Levels(4, rotate=True), 0.009497),
    ],
    ids=repr,
)
def test_the_error_on_a_gaussian(codec: Codec, expected: float) -> None:
    vector = normal(1 << 17)
    assert lost(vector, there_and_back(codec, vector)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_rotation_makes_heavy_tails_gaussian(bits: int) -> None:
    vector = heavy(1 << 18)
    turned = lost(vector, there_and_back(Levels(bits, rotate=True), vector))
    gaussian = lost(normal(1 << 18), there_and_back(Levels(bits), normal(1 << 18)))
    assert turned == pytest.approx(gaussian, rel=0.15)
    assert lost(vector, there_and_back(Levels(bits), vector)) > 1.3 * turned


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
some = st.lists(finite, min_size=1, max_size=40)
CONTRACTIONS = [codec for codec in EVERY if codec not in RANDOM]


@pytest.mark.parametrize("codec", CONTRACTIONS, ids=repr)
@settings(max_examples=30)
@given(values=some)
@example(values=[LARGEST, -LARGEST, 1.0])
@example(values=[1e-45, -1e-45, 0.0])
@example(values=[1e-38] * 7 + [1e-30])
@example(values=[LARGEST, 1e-45])
def test_inside_feedback_no_error_is_larger_than_the_vector(codec: Codec, values: list[float]) -> None:
    vector = torch.tensor(values)
    decoded = there_and_back(codec, vector)
    assert decoded.isfinite().all()
    exact = vector.double()
    # Below 1e-44 a scale itself is rounded to a multiple of 1.4e-45.
    slack = 1e-44 * math.sqrt(len(values))
    assert float((decoded.double() - exact).norm()) <= float(exact.norm()) * (1 + 1e-6) + slack


# ---- blocks ----


@pytest.mark.parametrize("codec", BY_BLOCK, ids=repr)
@pytest.mark.parametrize("rest", [1, 5, 6, 63])
def test_blocks_are_encoded_each_by_itself(codec: Codec, rest: int) -> None:
    """The last one has fewer values, and its scale is of those alone."""
    size = SIZE[type(codec)]
    vector = heavy(3 * size + rest)
    alone = [there_and_back(codec, part) for part in vector.split(size)]
    assert torch.equal(there_and_back(codec, vector), torch.cat(alone))


@pytest.mark.parametrize("codec", [*BY_BLOCK, *ROTATED], ids=repr)
def test_chunks_do_not_show(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = heavy(3 * blocks.CHUNK + 777)
    payload, decoded = encode(codec, vector), there_and_back(codec, vector)
    monkeypatch.setattr(blocks, "CHUNK", 5 * 1280)
    assert encode(codec, vector) == payload
    assert torch.equal(decode(codec, payload, len(vector)), decoded)


@pytest.mark.parametrize("codec", [*BY_BLOCK, *ROTATED], ids=repr)
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**-62, 2.0**-50, 2.0**50, 2.0**61, 2.0**100])
def test_the_size_of_values_does_not_matter(codec: Codec, factor: float) -> None:
    vector = heavy(2600)
    decoded = there_and_back(codec, vector)
    scaled = there_and_back(codec, vector * factor)
    assert torch.allclose(scaled.double() / factor, decoded.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", [*BY_BLOCK, *RANDOM], ids=repr)
def test_every_kind_of_block_beside_every_other(codec: Codec) -> None:
    """Zeros, very small, ordinary and very large ones: none spoils its neighbour."""
    size = SIZE[type(codec)]
    ordinary = normal(size)
    parts = [ordinary, ordinary * 0, ordinary * 1e-30, ordinary, ordinary.sign() * 1e38, ordinary]
    decoded = there_and_back(codec, torch.cat(parts)).split(size)
    for part, found in zip(parts, decoded, strict=True):
        limit = 1.0 if codec in RANDOM else 0.38
        assert float((found.double() - part.double()).norm()) <= limit**0.5 * float(part.double().norm())
    assert not decoded[1].any()


# ---- random rounding ----


def copies(codec: Codec, block: Tensor, times: int, sending: Sending = ALONE) -> Tensor:
    """What `times` independent encodings of one block give (times, size): they are blocks of one vector."""
    return there_and_back(codec, block.repeat(times), sending).view(times, -1).double()


@pytest.mark.parametrize("codec", [*RANDOM, Ternary()], ids=repr)
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_unbiased(codec: QSGD | Ternary, tails: str) -> None:
    """No mean of a value is off by 5 standard errors and 10 draws, no sum of sizes by 4 standard errors.

    A bias of 2 % of every value would put the sum off by 8 standard errors or more: it would be seen.
    """
    size, times = SIZE[type(codec)], 3000
    block = normal(size) if tails == "normal" else heavy(size).clamp(-8, 8)
    decoded = copies(codec, block, times)
    exact = block.double()
    step = exact.abs().max() / (codec.levels if isinstance(codec, QSGD) else 1)
    fraction = (exact / step).frac().abs()
    errors = (decoded.mean(0) - exact).abs() / step
    assert (errors <= 5 * (fraction * (1 - fraction) / times).sqrt() + 10 / times).all()
    sizes = (decoded * exact.sign()).sum(1)
    standard = float(sizes.std()) / times**0.5
    assert 0.02 * float(exact.abs().sum()) > 8 * standard
    assert abs(float(sizes.mean() - exact.abs().sum())) < 4 * standard


def test_the_largest_value_is_never_rounded_past_the_end() -> None:
    """127 + 0.999999 is 128 in fp32, which would be -128 as a code: among two million values some meet it."""
    vector = torch.full((1 << 21,), 3.0)
    assert float(there_and_back(QSGD(8), vector, ALONE).min()) == pytest.approx(3)


def test_ternary_drops_by_the_variance_of_its_paper() -> None:
    block = normal(1280)
    decoded, exact = copies(Ternary(), block, 2000), block.double()
    most = exact.abs().max()
    assert torch.allclose(decoded.abs().amax(1), most)
    expected = (exact.abs() * (most - exact.abs())).sum()
    found = (decoded - exact).square().sum(1).mean()
    assert float(found / expected) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("codec", RANDOM, ids=repr)
def test_the_worst_variance_is_what_it_is_said_to_be(codec: QSGD) -> None:
    """By search over what the other 255 values may be, and then by encoding the worst bucket."""
    top, number = codec.levels, 255
    fractions = np.linspace(1e-4, 1, 100_000)
    ratios = number * fractions * (1 - fractions) / (top**2 + number * fractions**2)
    assert 0.98 * codec.variance < ratios.max() < codec.variance
    worst = torch.full((256,), float(fractions[ratios.argmax()]))
    worst[0] = top
    errors = (copies(codec, worst, 2000) - worst.double()).square().sum(1) / worst.double().square().sum()
    assert float(errors.mean()) == pytest.approx(ratios.max(), rel=0.03)


@pytest.mark.parametrize("codec", RANDOM, ids=repr)
def test_inside_feedback_qsgd_is_a_contraction(codec: QSGD) -> None:
    """Two bits have a variance of 7.5: only divided by 8.5 is the mean error below the vector."""
    omega = codec.variance
    share = 1 + omega if omega >= 1 else 1.0
    assert (share > 1) == (codec.bits == 2)
    worst = torch.full((256,), 0.1)
    worst[0] = codec.levels
    alone, fed = copies(codec, worst, 2000), copies(codec, worst, 2000, FED)
    assert torch.allclose(fed * share, alone, rtol=1e-6)
    error = (fed - worst.double()).square().sum(1).mean() / worst.double().square().sum()
    assert float(error) < (omega / (1 + omega) if share > 1 else omega) < 1


@pytest.mark.parametrize("codec", [*RANDOM, Ternary(), *ROTATED], ids=repr)
def test_the_key_decides(codec: Codec) -> None:
    vector = normal(3000)
    keys = [0, 1, 2, 2**63 - 1]
    payloads = [encode(codec, vector, Sending(key=key)) for key in keys]
    assert payloads == [encode(codec, vector, Sending(key=key)) for key in keys]
    assert len(set(payloads)) == len(keys)


def test_uniform_numbers() -> None:
    """On a grid of 2^-24, below 1, in equal shares, and fine enough: of 2^22 numbers 16 are below 2^-18."""
    uniform = Uniform(3)
    numbers = np.concatenate([uniform.rows((256, 256)).reshape(-1) for _ in range(64)])
    assert numbers.dtype == np.float32 and numbers.min() >= 0 and numbers.max() < 1
    assert not (numbers * 2.0**24 % 1).any()
    counts = np.histogram(numbers, 1000, (0, 1))[0]
    assert (np.square(counts - counts.mean()) / counts.mean()).sum() == pytest.approx(999, abs=5 * 45)
    assert abs(int((numbers < 2**-18).sum()) - 16) <= 12
    odd = uniform.rows((3, 7))
    assert odd.shape == (3, 7) and len(np.unique(odd)) == 21


# ---- levels and rotation ----


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_each_level_is_the_mean_of_what_is_nearest_to_it(bits: int) -> None:
    """The two conditions of Lloyd and Max: cuts halfway between levels, levels at their cells' means."""
    levels, bell = LEVELS[bits], NormalDist()
    assert len(levels) == 2 ** (bits - 1)
    cuts = [0, *((a + b) / 2 for a, b in pairwise(levels)), 40.0]
    for level, (low, high) in zip(levels, pairwise(cuts), strict=True):
        mean = (bell.pdf(low) - bell.pdf(high)) / (bell.cdf(high) - bell.cdf(low))
        assert level == pytest.approx(mean, abs=2e-9)


FIRST = {0: 0x91959E5FB96A6332, 2**64 - 1: 0x0C416B14B4FBFE0C}


def test_the_rotation_is_orthonormal_and_its_own_inverse() -> None:
    matrix = hadamard(np.eye(1024, dtype=np.float32))
    bits = np.arange(1024)
    parity = np.bitwise_count(bits[:, None] & bits) % 2 if hasattr(np, "bitwise_count") else None
    if parity is not None:  # numpy 2
        assert np.abs(matrix - (1 - 2.0 * parity) / 32).max() < 1e-6
    assert np.abs(np.abs(matrix) - 1 / 32).max() < 1e-6
    assert np.abs(matrix @ matrix.T - np.eye(1024)).max() < 1e-5
    rows = normal(3 * 1024).view(3, 1024).numpy()
    assert np.abs(hadamard(hadamard(rows)) - rows).max() < 1e-5


def test_the_signs_are_those_of_every_other_machine() -> None:
    """Raw bits of SFC64, 64 at a time, lowest first: what is decoded elsewhere must agree."""
    for seed, first in FIRST.items():
        words = [int(word) for word in np.random.SFC64(seed).random_raw(16)]
        assert words[0] == first
        expected = [1 - 2 * (word >> place & 1) for word in words for place in range(64)]
        assert random_signs(seed).tolist() == expected


def test_one_value_survives_a_rotation_exactly() -> None:
    for codec in ROTATED:
        vector = torch.zeros(1500)
        vector[[7, 1030]] = torch.tensor([-3.0, 5.0])
        for sending in (FED, ALONE):
            assert torch.allclose(there_and_back(codec, vector, sending), vector, atol=1e-5)


@pytest.mark.parametrize("codec", ROTATED, ids=repr)
def test_rotated_levels_alone_are_nearly_unbiased(codec: Levels) -> None:
    """Along the vector exactly, with every seed; across it a bias of 1.5 % of the norm would be seen."""
    vector, times = normal(1024 + 300), 400
    exact = vector.double()
    decoded = torch.stack([there_and_back(codec, vector, Sending(key=key)).double() for key in range(times)])
    for block in (slice(0, 1024), slice(1024, None)):
        found, wanted = decoded[:, block], exact[block]
        norm = wanted.square().sum()
        assert torch.allclose(found @ wanted / norm, torch.ones(times, dtype=torch.float64), atol=1e-5)
        spread = (found - found.mean(0)).square().sum(1).mean() / norm
        bias = (found.mean(0) - wanted).square().sum() / norm - spread / times
        assert float(bias) < 0.015**2
    fed = there_and_back(codec, vector, FED).double()
    assert float(fed @ exact / exact.square().sum()) < 0.999


# ---- what cannot be a payload ----

FLOAT = {
    name: struct.pack("<f", value) for name, value in {"nan": math.nan, "inf": math.inf, "neg": -1}.items()
}


@pytest.mark.parametrize("codec", [*BY_BLOCK, *ROTATED, *RANDOM], ids=repr)
@pytest.mark.parametrize("scale", FLOAT.values(), ids=FLOAT.keys())
def test_a_scale_that_is_none_is_refused(codec: Codec, scale: bytes) -> None:
    payload = encode(codec, normal(3000))
    place = 8 * (codec in ROTATED) + 4
    with pytest.raises(PayloadError, match="scale"):
        decode(codec, payload[:place] + scale + payload[place + 4 :], 3000)


@pytest.mark.parametrize("codec", [*BY_BLOCK, *ROTATED, *RANDOM], ids=repr)
def test_whatever_the_codes_what_is_decoded_is_finite(codec: Codec) -> None:
    """The largest scale that is let in, with every byte: a sum over a rotated block stays in range too."""
    count, size = 5 * 1280, SIZE[type(codec)]
    largest = encode(codec, torch.full((count,), LARGEST))
    start = 8 * (codec in ROTATED) + 4 * -(-count // size)
    for byte in (0x00, 0x55, 0x80, 0x88, 0xAA, 0xF2, *([] if isinstance(codec, Ternary) else [0xFF])):
        payload = largest[:start] + bytes([byte]) * (len(largest) - start)
        assert decode(codec, payload, count).isfinite().all()


@pytest.mark.parametrize(
    ("codec", "count", "last"),
    [
        (Int4(), 3, 0x10),
        (QSGD(2), 3, 0x40),
        (QSGD(4), 3, 0x10),
        (Ternary(), 3, 27),
        (Ternary(), 5, 243),
        (Sign(), 3, 0x08),
        (Levels(2), 3, 0x40),
        (Levels(4), 3, 0x10),
    ],
    ids=repr,
)
def test_what_no_values_stand_for_is_refused(codec: Codec, count: int, last: int) -> None:
    payload = encode(codec, torch.ones(count))
    decode(codec, payload[:-1] + bytes([last - 1]), count)
    with pytest.raises(PayloadError, match="byte"):
        decode(codec, payload[:-1] + bytes([last]), count)


def test_a_byte_that_is_no_trits_is_seen_anywhere() -> None:
    payload = bytearray(encode(Ternary(), normal(2000)))
    payload[8 + 100] = 243
    with pytest.raises(PayloadError, match="no 5 codes of 3 levels"):
        decode(Ternary(), bytes(payload), 2000)


def test_the_least_code_is_what_it_says() -> None:
    assert decode(Int8(), bytes.fromhex("0000803f 80"), 1).tolist() == [-128]
    assert decode(Int4(), bytes.fromhex("0000803f 08"), 1).tolist() == [-8]
    assert decode(QSGD(2), bytes.fromhex("0000803f 02"), 1).tolist() == [-2]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_half_refuses_what_is_not_finite(bf16: bool, bad: float) -> None:
    dtype = torch.bfloat16 if bf16 else torch.float16
    payload = torch.tensor([1, bad], dtype=dtype).view(torch.int16).numpy().tobytes()
    with pytest.raises(PayloadError, match="not finite"):
        decode(Half(bf16), payload, 2)


@pytest.mark.parametrize("codec", [QSGD, Levels])
@pytest.mark.parametrize("bits", [-1, 0, 3, 5, 16])
def test_other_bits_are_refused_in_one_line(codec: type[QSGD] | type[Levels], bits: int) -> None:
    with pytest.raises(EdgewiseError, match=f"bits is {bits}; legal: ") as error:
        codec(bits)
    assert "\n" not in str(error.value)
