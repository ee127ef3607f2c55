"""Terms of low rank: the budget, where it goes, how well they stand for a matrix, and the payload."""

from __future__ import annotations

import struct

import pytest
import torch
from specimens import KINDS, bits, distance, vector
from torch import Tensor

from edgewise.codecs.base import Memory, NotFinite, PayloadError, Sending
from edgewise.codecs.feedback import Feedback
from edgewise.codecs.levels import LEVELS
from edgewise.codecs.lowrank import RIDGE, LowRank, allocate, principal
from edgewise.codecs.subspace import WARM
from edgewise.errors import EdgewiseError
from edgewise.vector import Entry, Layout

FP32 = torch.float32


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    entries, start = [], 0
    for place, shape in enumerate(shapes):
        entries.append(Entry(f"p{place}", shape, "weight", start))
        start = entries[-1].stop
    return Layout(tuple(entries), ())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sent(codec: LowRank, values: Tensor, layout: Layout, rounds: int = 1) -> tuple[Tensor, list[int]]:
    """What arrives when the same vector is sent so often, and the last ranks."""
    memory: Memory = {}
    payload = b""
    for _ in range(rounds):
        payload, memory = codec.encode(values, layout, memory, Sending())
    matrices = sum(len(entry.shape) > 1 for entry in layout.params)
    return codec.decode(payload, layout, FP32), list(struct.unpack(f"<{matrices}H", payload[: 2 * matrices]))


# ---- what is sent ----


def test_a_payload_by_hand() -> None:
    layout = layout_of((8, 9), (2,))
    codec = LowRank(0.05)  # 14 bytes: one term is sent all the same, 4 + 4 + 5 of them
    levels = LEVELS[4]
    left = [0, 1, 2, 3, 8, 9, 10, 11]
    right = [7, 0, 0, 0, 15, 0, 0, 0, 1]
    payload = struct.pack("<Hf", 1, 2.0) + bytes([0x10, 0x32, 0x98, 0xBA]) + bytes([0x07, 0, 0x0F, 0, 0x01])
    payload += struct.pack("<f2b", 2.0, 127, -127)
    assert codec.bound(layout, FP32) == len(payload) == 21
    signed = [*levels, *(-level for level in levels)]
    expected = 2 * torch.outer(
        torch.tensor([signed[code] for code in left]), torch.tensor([signed[code] for code in right])
    )
    for dtype in (FP32, torch.float64):
        decoded = codec.decode(payload, layout, dtype)
        assert torch.allclose(decoded[:72].view(8, 9), expected.to(dtype)) and decoded.dtype == dtype
        assert decoded[72:].tolist() == [2, -2]
    none = struct.pack("<Hf2b", 0, 0, 0, 0)
    assert codec.decode(none, layout, FP32).tolist() == [0] * 74
    assert codec.encode(torch.zeros(74), layout, {}, Sending())[0] == none


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_the_budget_is_spent_and_not_exceeded(share: float) -> None:
    layout = layout_of((64, 16, 3, 3), (32, 200), (64,), (128, 128))
    payload, _ = LowRank(share).encode(normal(layout.count), layout, {}, Sending())
    whole = share * 4 * layout.count
    dearest = 4 + (64 + 144) / 2
    assert whole - dearest < len(payload) <= min(whole, LowRank(share).bound(layout, FP32))


def test_terms_go_where_their_energy_is() -> None:
    layout = layout_of((64, 64), (64, 64))
    quiet, loud = normal(64, 64), 30 * normal(64, 64, seed=1)
    _, ranks = sent(LowRank(0.03), torch.cat([quiet.flatten(), loud.flatten()]), layout)
    assert ranks[0] == 0 and ranks[1] > 5
    _, ranks = sent(LowRank(0.03), torch.cat([quiet.flatten(), quiet.flatten()]), layout)
    assert abs(ranks[0] - ranks[1]) <= 3


def test_terms_are_taken_by_energy_for_a_byte() -> None:
    assert allocate([[9.0, 4.0, 1.0], [8.0, 3.0]], [10, 10], 30) == [2, 1]
    assert allocate([[9.0, 4.0, 1.0], [8.0, 3.0]], [10, 2], 14) == [1, 2]
    assert allocate([[9.0], [8.0]], [10, 2], 9) == [0, 1]  # what does not fit is passed over
    assert allocate([[0.0, 0.0], [1.0, 0.0]], [1, 1], 9) == [0, 1]
    assert allocate([[1.0], [1.0]], [1, 1], 1) == [1, 0]
    assert allocate([], [], 9) == []


def test_a_share_too_small_for_anything_sends_one_term() -> None:
    layout = layout_of((30, 40), (500,), (20, 20))
    decoded, ranks = sent(LowRank(1e-6), normal(layout.count), layout)
    assert sum(ranks) == 1
    assert distance(decoded[1200:1700], normal(layout.count)[1200:1700]) < 0.5


def test_small_matrices_are_among_the_other_values() -> None:
    layout = layout_of((7, 90), (8, 90))
    payload, memory = LowRank(0.01).encode(normal(layout.count), layout, {}, Sending())
    assert len(payload) == 2 + (4 + 4 + 45) + 4 + 630
    assert len(memory[WARM]) == 8 * 90  # eight directions


# ---- how well ----


def test_turning_changes_no_product() -> None:
    p, q = torch.linalg.qr(normal(30, 5)).Q, normal(40, 5, seed=1)
    left, right = principal(p, q)
    assert torch.allclose(left @ right.T, p @ q.T, atol=1e-5)
    gram = right.T @ right
    assert torch.allclose(gram, torch.diag(gram.diag()), atol=1e-4)
    assert (gram.diag().diff() <= 0).all()
    assert torch.allclose(left.T @ left, torch.eye(5), atol=1e-5)


def test_a_matrix_of_low_rank_arrives() -> None:
    layout = layout_of((60, 80))
    matrix = normal(60, 3) @ normal(3, 80, seed=1)
    decoded, _ = sent(LowRank(0.05), matrix.flatten(), layout)
    assert distance(decoded, matrix.flatten()) < 0.2 * float(matrix.norm())


def test_rounds_approach_the_best_subspace() -> None:
    u, _, v = torch.linalg.svd(normal(64, 64))
    matrix = u @ torch.diag(0.8 ** torch.arange(64.0)) @ v
    layout = layout_of((64, 64))
    (first, _), (later, ranks) = (sent(LowRank(0.03), matrix.flatten(), layout, n) for n in (1, 15))
    best = float((0.8 ** torch.arange(float(ranks[0]), 64)).norm())
    missed = distance(later, matrix.flatten())
    assert missed < distance(first, matrix.flatten()) and best < missed < best + 0.2 * float(matrix.norm())


@pytest.mark.parametrize("kind", [*KINDS, "diagonal", "corner"])
def test_what_is_left_is_never_longer_than_the_vector(kind: str) -> None:
    """Also where factors are nothing like a Gaussian, so that their levels fit them badly."""
    layout = layout_of((40, 50), (24, 8, 3, 3))
    if kind == "diagonal":
        values = torch.cat([torch.eye(40, 50).flatten(), torch.eye(24, 72).flatten()])
    elif kind == "corner":
        values = torch.zeros(layout.count)
        values[0] = -5
    else:
        values = vector(kind, layout.count)
    codec, memory = LowRank(0.05), dict[str, Tensor]()
    for _ in range(5):
        payload, memory = codec.encode(values, layout, memory, Sending())
        left = distance(codec.decode(payload, layout, torch.float64), values)
        assert left <= float(values.double().norm()) * (1 + RIDGE)
        assert left < 0.995 * float(values.double().norm()) or not values.any()


def test_feedback_sends_in_the_end_what_was_left() -> None:
    layout, codec = layout_of((30, 40), (20, 60)), Feedback(LowRank(0.08))
    values, memory, total = normal(layout.count), {}, torch.zeros(layout.count)
    for _ in range(40):
        payload, memory = codec.encode(values, layout, memory, Sending())
        total += codec.decode(payload, layout, FP32)
    assert distance(total / 40, values) < 0.2 * float(values.norm())


@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_the_scale_changes_no_digit(power: int) -> None:
    layout = layout_of((20, 30), (16, 16))
    values = normal(layout.count)
    plain, _ = sent(LowRank(0.1), values, layout)
    scaled, _ = sent(LowRank(0.1), values * 2.0**power, layout)
    assert bits(scaled.double()) == bits(plain.double() * 2.0**power)


def test_no_direction_is_left_for_good() -> None:
    """After zeros, and after a matrix of rank 1, what lies in other rows and columns is found."""
    layout, codec = layout_of((30, 40)), LowRank(0.04)
    corner, other = torch.zeros(30, 40), torch.zeros(30, 40)
    corner[:6, :6] = 1
    other[20:, 20:] = normal(10, 1) @ normal(1, 20, seed=1)
    memory: Memory = {}
    for start in (torch.zeros(30, 40), corner):
        for _ in range(4):
            _, memory = codec.encode(start.flatten(), layout, memory, Sending())
        whole, found = (corner + other).flatten(), torch.zeros(1200)
        for _ in range(30):
            payload, memory = codec.encode(whole, layout, memory, Sending())
            found = codec.decode(payload, layout, FP32)
        assert distance(found, whole) < 0.35 * float(whole.norm())


def test_every_device_starts_alike() -> None:
    layout = layout_of((30, 40), (5,))
    sendings = [Sending(), Sending(key=5), Sending(rate=0.1), Sending(fed=True)]
    assert len({LowRank().encode(normal(layout.count), layout, {}, one)[0] for one in sendings}) == 1


# ---- what is refused ----


def test_more_terms_than_are_followed_are_refused() -> None:
    layout, codec = layout_of((30, 40), (30, 40)), LowRank(0.2)
    payload, memory = codec.encode(normal(layout.count), layout, {}, Sending())
    followed = len(memory[WARM]) // 80
    ranks = struct.unpack("<2H", payload[:4])
    assert sum(ranks) > followed / 2
    for wrong in ((sum(ranks), 0), (followed + 1, 0), (0xFFFF, 0xFFFF), (ranks[0] + 1, ranks[1])):
        with pytest.raises(PayloadError):
            codec.decode(struct.pack("<2H", *wrong) + payload[4:], layout, FP32)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_scales_that_are_out_of_range_are_refused(scale: float) -> None:
    layout, codec = layout_of((30, 40)), LowRank(0.05)
    payload, _ = codec.encode(normal(1200), layout, {}, Sending())
    with pytest.raises(PayloadError, match="finite"):
        codec.decode(payload[:2] + struct.pack("<f", scale) + payload[6:], layout, FP32)


def test_finite_values_that_are_too_large_are_refused() -> None:
    layout = layout_of((20, 30))
    with pytest.raises(NotFinite):
        LowRank(0.05).encode(torch.full((600,), 1e38), layout, {}, Sending())
    payload, _ = LowRank(0.05).encode(torch.full((600,), 1e35), layout, {}, Sending())
    assert LowRank(0.05).decode(payload, layout, FP32).isfinite().all()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_shares_that_make_no_sense(share: float) -> None:
    with pytest.raises(EdgewiseError, match="legal"):
        LowRank(share)
