"""PowerSGD: subspaces, warm starts and the payload, number by number."""

from __future__ import annotations

import struct

import pytest
import torch
from specimens import LAYOUTS, bits, distance, vector
from torch import Tensor

from edgewise.codecs.base import Memory, NotFinite, PayloadError, Sending
from edgewise.codecs.feedback import Feedback
from edgewise.codecs.powersgd import WARM, PowerSGD
from edgewise.errors import EdgewiseError
from edgewise.vector import Entry, Layout

FP32 = torch.float32
every_precision = pytest.mark.parametrize("codec", [PowerSGD(4), PowerSGD(4, 16), PowerSGD(4, 8)], ids=repr)


def matrix_layout(rows: int, columns: int, *more: int) -> Layout:
    """A layout of one matrix, followed by vectors of the sizes `more`."""
    entries, start = [Entry("matrix", (rows, columns), "weight", 0)], rows * columns
    for size in more:
        entries.append(Entry(f"bias{start}", (size,), "bias", start))
        start += size
    return Layout(tuple(entries), ())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def repeated(codec: PowerSGD, matrix: Tensor, rounds: int, memory: Memory) -> tuple[Tensor, Memory]:
    """The last of `rounds` decoded matrices when the same one is sent each round."""
    layout, decoded = matrix_layout(*matrix.shape), matrix
    for _ in range(rounds):
        payload, memory = codec.encode(matrix.flatten(), layout, memory, Sending())
        decoded = codec.decode(payload, layout, FP32).view_as(matrix)
    return decoded, memory


# ---- what is sent ----


def test_a_payload_by_hand() -> None:
    layout = matrix_layout(4, 5, 2)  # P has 4 numbers, Q 5
    numbers = [0.5, -0.5, 0.5, 0.5, 1, 2, 3, 4, 5, 7, 8]
    expected = [p * q for p in numbers[:4] for q in numbers[4:9]] + [7, 8]
    payload = struct.pack("<11f", *numbers)
    codec = PowerSGD(1)
    assert codec.bound(layout, FP32) == len(payload) == 44
    assert codec.decode(payload, layout, FP32).tolist() == expected
    assert codec.decode(payload, layout, torch.float64).tolist() == expected
    halves = struct.pack("<f4e", 0.5, 1, -1, 1, 1) + struct.pack("<f5e", 2, *[q / 2 for q in numbers[4:9]])
    halves += struct.pack("<f2e", 1, 7, 8)
    assert PowerSGD(1, 16).bound(layout, FP32) == len(halves) == 34
    assert PowerSGD(1, 16).decode(halves, layout, FP32).tolist() == expected
    small = struct.pack("<f4b", 0.25, 2, -2, 2, 2) + struct.pack("<f5b", 1, 1, 2, 3, 4, 5)
    small += struct.pack("<f2b", 0.5, 14, 16)
    assert PowerSGD(1, 8).bound(layout, FP32) == len(small) == 23
    assert PowerSGD(1, 8).decode(small, layout, FP32).tolist() == expected


def test_only_matrices_that_shrink_are_factored() -> None:
    for rows, columns, factored in (
        (8, 8, False),
        (8, 9, True),
        (2, 1000, False),
        (5, 21, True),
        (5, 20, False),
    ):
        layout = matrix_layout(rows, columns, 3)
        numbers = (4 * (rows + columns) if factored else rows * columns) + 3
        assert PowerSGD(4).bound(layout, FP32) == 4 * numbers
        values = normal(layout.count)
        payload, memory = PowerSGD(4).encode(values, layout, {}, Sending())
        decoded = PowerSGD(4).decode(payload, layout, FP32)
        assert (bits(decoded) == bits(values)) == (not factored)
        assert bits(decoded[-3:]) == bits(values[-3:])
        assert {name: len(q) for name, q in memory.items()} == ({WARM: 4 * columns} if factored else {})


def test_a_kernel_is_its_first_dimension_times_the_rest() -> None:
    entry = Entry("kernel", (6, 4, 3, 3), "weight", 0)
    values = (normal(6, 1) @ normal(1, 36, seed=1)).flatten()
    payload, _ = PowerSGD(1).encode(values, Layout((entry,), ()), {}, Sending())
    assert len(payload) == 4 * (6 + 36)
    assert distance(PowerSGD(1).decode(payload, Layout((entry,), ()), FP32), values) < 1e-5


# ---- how well ----


@every_precision
@pytest.mark.parametrize("rank", [0, 1, 3, 4])
def test_a_matrix_of_low_rank_arrives_whole(codec: PowerSGD, rank: int) -> None:
    matrix = normal(30, rank) @ normal(rank, 40, seed=1)
    decoded, memory = repeated(codec, matrix, 1, {})
    tolerance = {32: 1e-5, 16: 2e-3, 8: 0.02}[codec.bits]
    assert distance(decoded, matrix) <= tolerance * float(matrix.norm())
    again, _ = repeated(codec, matrix, 1, memory)
    assert distance(again, matrix) <= tolerance * float(matrix.norm())


def test_rounds_approach_the_best_subspace() -> None:
    u, _, v = torch.linalg.svd(normal(40, 60))
    matrix = u @ torch.diag(0.7 ** torch.arange(40.0)) @ v[:40]
    best = float((0.7 ** torch.arange(4.0, 40)).norm())
    first, _ = repeated(PowerSGD(4), matrix, 1, {})
    later, _ = repeated(PowerSGD(4), matrix, 15, {})
    assert distance(first, matrix) > 1.1 * best
    assert best * (1 - 1e-5) <= distance(later, matrix) < 1.001 * best


@every_precision
def test_the_error_is_what_a_projection_leaves(codec: PowerSGD) -> None:
    matrix = normal(30, 50)
    decoded, _ = repeated(codec, matrix, 3, {})
    left = distance(decoded, matrix) ** 2
    tolerance = 0.01 if codec.bits == 8 else 1e-3
    assert left == pytest.approx(float(matrix.norm() ** 2 - decoded.norm() ** 2), rel=tolerance)
    assert 0.5 < left / float(matrix.norm() ** 2) < 0.9


@every_precision
@pytest.mark.parametrize("power", [-110, -60, 60, 110])
def test_the_scale_changes_no_digit(codec: PowerSGD, power: int) -> None:
    layout = matrix_layout(20, 30, 5)
    values = normal(layout.count)
    plain, scaled = (
        codec.decode(codec.encode(x, layout, {}, Sending())[0], layout, FP32).double()
        for x in (values, values * 2.0**power)
    )
    assert bits(scaled) == bits(plain * 2.0**power)


@every_precision
def test_subnormal_numbers_are_no_zeros(codec: PowerSGD) -> None:
    matrix = torch.full((20, 30), 1e-42)
    decoded, _ = repeated(codec, matrix, 1, {})
    assert distance(decoded, matrix) < 0.02 * float(matrix.double().norm())


@every_precision
def test_the_largest_other_value_is_sent(codec: PowerSGD) -> None:
    layout = Layout.vector(3)
    top = torch.finfo(FP32).max
    for fraction in (1.0, 0.99999, 0.7, 0.5):
        values = torch.tensor([top * fraction, -top * fraction, 1.0])
        payload, _ = codec.encode(values, layout, {}, Sending())
        assert torch.allclose(codec.decode(payload, layout, FP32)[:2], values[:2], rtol=1e-3)


# ---- where a round starts ----


def test_every_device_starts_alike() -> None:
    layout, values = LAYOUTS["net"], vector("gaussian", LAYOUTS["net"].count)
    sendings = [Sending(), Sending(key=5), Sending(rate=0.1), Sending(fed=True)]
    assert len({PowerSGD(4).encode(values, layout, {}, sending)[0] for sending in sendings}) == 1


def test_matrices_of_one_shape_start_apart() -> None:
    entries = tuple(Entry(f"layer{i}", (20, 30), "weight", 600 * i) for i in range(2))
    matrix = normal(600)
    payload, _ = PowerSGD(4).encode(torch.cat([matrix, matrix]), Layout(entries, ()), {}, Sending())
    half = len(payload) // 2
    assert payload[:half] != payload[half:]


def test_a_warm_start_of_directions_has_columns_of_norm_one() -> None:
    _, memory = repeated(PowerSGD(4), 1e-12 * normal(30, 40), 5, {})
    assert torch.allclose(memory[WARM].view(40, 4).norm(dim=0), torch.ones(4), atol=0.002)


@pytest.mark.parametrize("rank", [1, 4])
def test_no_subspace_is_left_for_good(rank: int) -> None:
    """After zeros, and after a matrix of rank 1, what lies in other rows and columns is found."""
    corner, other = torch.zeros(30, 40), torch.zeros(30, 40)
    corner[:6, :6] = 1
    other[20:, 20:] = normal(10, 1) @ normal(1, 20, seed=1)
    memory: Memory = {}
    for start in (torch.zeros(30, 40), corner):
        _, memory = repeated(PowerSGD(rank), start, 4, memory)
        found, _ = repeated(PowerSGD(rank), corner + other, 30, memory)
        best = float(torch.linalg.svdvals(corner + other)[rank:].norm())
        assert distance(found, corner + other) < best + 1e-3


def test_feedback_sends_in_the_end_what_the_subspace_missed() -> None:
    layout, codec = matrix_layout(30, 40), Feedback(PowerSGD(4))
    matrix, memory, total = normal(30, 40).flatten(), {}, torch.zeros(1200)
    for _ in range(40):
        payload, memory = codec.encode(matrix, layout, memory, Sending())
        total += codec.decode(payload, layout, FP32)
    assert distance(total / 40, matrix) < 0.2 * float(matrix.norm())


# ---- what is refused ----


@pytest.mark.parametrize("bits_sent", [16, 32])
def test_a_payload_that_is_not_finite_is_refused(bits_sent: int) -> None:
    codec, layout = PowerSGD(1, bits_sent), matrix_layout(4, 5, 2)
    payload, _ = codec.encode(normal(22), layout, {}, Sending())
    width = bits_sent // 8
    bad = struct.pack("<f", float("nan")) if width == 4 else struct.pack("<e", float("inf"))
    for end in range(width + 4, len(payload) + 1, width):
        wrong = payload[: end - width] + bad + payload[end:]
        if end in (len(payload), len(payload) - 4 * width):
            with pytest.raises(PayloadError, match="not finite"):
                codec.decode(wrong, layout, FP32)


def test_a_product_beyond_single_precision_is_refused() -> None:
    layout = matrix_layout(4, 5)
    with pytest.raises(PayloadError, match="finite"):
        PowerSGD(1).decode(struct.pack("<9f", *[1e20] * 9), layout, FP32)


def test_finite_values_that_are_too_large_are_refused() -> None:
    layout = matrix_layout(20, 30)
    with pytest.raises(NotFinite):
        PowerSGD(4).encode(torch.full((600,), 1e38), layout, {}, Sending())
    payload, _ = PowerSGD(4).encode(torch.full((600,), 1e36), layout, {}, Sending())
    assert PowerSGD(4).decode(payload, layout, FP32).isfinite().all()


@pytest.mark.parametrize("rank, bits_sent", [(0, 32), (-1, 32), (4, 4), (4, 0)])
def test_settings_that_make_no_sense(rank: int, bits_sent: int) -> None:
    with pytest.raises(EdgewiseError, match="legal"):
        PowerSGD(rank, bits_sent)
