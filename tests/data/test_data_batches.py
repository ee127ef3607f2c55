"""Order and augmentation: addressed draws, and pixels where a slow, plain reading of the paper puts them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgewise.data.batches import (
    Augment,
    Draws,
    apply,
    draw,
    mix,
    normalise,
    positions,
    prepare,
    symmetric_beta,
)
from edgewise.errors import EdgewiseError

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])


def random_images(batch: int, height: int = 9, width: int = 12) -> Tensor:
    shape = (batch, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), device=st.integers(0, 10**6), count=st.integers(1, 30))
def test_each_pass_is_a_permutation(seed: int, device: int, count: int) -> None:
    stream = positions(seed, device, count, 0, 4 * count)
    assert stream.dtype == torch.int64
    for one in stream.view(4, count):
        assert sorted(one.tolist()) == list(range(count))


@settings(deadline=None, max_examples=100)
@given(
    count=st.integers(1, 20),
    start=st.integers(0, 100),
    cuts=st.lists(st.integers(0, 50), min_size=1, max_size=6),
)
def test_a_stream_cut_anywhere_gives_the_same_numbers(count: int, start: int, cuts: list[int]) -> None:
    whole = positions(5, 2, count, 0, start + sum(cuts))
    pieces = []
    at = start
    for take in cuts:
        pieces.append(positions(5, 2, count, at, take))
        assert len(pieces[-1]) == take
        at += take
    assert torch.equal(torch.cat(pieces), whole[start:])


def test_orders_differ_between_passes_devices_and_seeds() -> None:
    orders = [
        positions(0, 0, 50, 0, 50),
        positions(0, 0, 50, 50, 50),
        positions(0, 1, 50, 0, 50),
        positions(1, 0, 50, 0, 50),
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_changing_a_batch_does_not_change_the_stream() -> None:
    before = positions(0, 0, 10, 0, 10).clone()
    positions(0, 0, 10, 0, 10).zero_()
    assert torch.equal(positions(0, 0, 10, 0, 10), before)


def test_no_examples_is_an_error() -> None:
    with pytest.raises(EdgewiseError, match="device 3 holds no examples"):
        positions(0, 3, 0, 0, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", Augment()),
        ("crop", Augment(crop=4)),
        ("flip", Augment(flip=True)),
        ("crop,flip", Augment(4, True)),
        ("crop,flip,cutout:16", Augment(4, True, 16)),
        ("crop:2,cutout:8", Augment(2, False, 8)),
        ("flip,mixup:0.2", Augment(flip=True, mixup=0.2)),
    ],
)
def test_augmentation_text_and_back(text: str, value: Augment) -> None:
    assert Augment.parse(text) == value
    assert value.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "crops",
        "crop,",
        "cutout",
        "cutout:0",
        "cutout:x",
        "flip:1",
        "none,flip",
        "flip,flip",
        "mixup",
        "mixup:0",
        "mixup:-1",
        "mixup:nan",
        "mixup:x",
    ],
)
def test_illegal_augmentation_lists_the_legal(text: str) -> None:
    with pytest.raises(EdgewiseError, match=r"legal: none, or some of crop") as error:
        Augment.parse(text)
    assert "\n" not in str(error.value)


def test_draws_are_addressed() -> None:
    augment = Augment(4, True, 8)

    def numbers(seed: int, device: int, step: int) -> list[int]:
        drawn = draw(augment, seed, device, step, 16, (3, 9, 12))
        return torch.cat([drawn.offsets.flatten(), drawn.flips.long(), drawn.centres.flatten()]).tolist()

    assert numbers(0, 1, 2) == numbers(0, 1, 2)
    assert len({tuple(numbers(*at)) for at in [(0, 1, 2), (0, 1, 3), (0, 2, 1), (1, 1, 2)]}) == 4


def test_draws_cover_their_whole_range() -> None:
    drawn = draw(Augment(4, True, 8), 0, 0, 0, 4000, (3, 9, 12))
    assert set(drawn.offsets.flatten().tolist()) == set(range(9))
    assert drawn.offsets[:, 0].ne(drawn.offsets[:, 1]).any()
    assert set(drawn.centres[:, 0].tolist()) == set(range(9))
    assert set(drawn.centres[:, 1].tolist()) == set(range(12))
    assert 0.45 < drawn.flips.double().mean() < 0.55


def test_one_augmentation_leaves_the_draws_of_the_others() -> None:
    full, less = (draw(a, 0, 0, 0, 16, (3, 9, 12)) for a in (Augment(4, True, 8, 0.2), Augment(4)))
    assert torch.equal(full.offsets, less.offsets)
    assert (less.shares == 1).all()


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_shares_are_of_a_beta_distribution(alpha: float) -> None:
    """By its mean, variance and fourth moment; one share for all of a batch."""
    augment = Augment(mixup=alpha)
    drawn = [draw(augment, 5, 0, step, 2, (1, 1, 1)).shares for step in range(6000)]
    assert all(shares[0] == shares[1] and 0 <= shares[0] <= 1 for shares in drawn)
    apart = torch.stack(drawn)[:, 0] - 0.5
    second, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(apart.mean()) < 4 * (second / 6000) ** 0.5
    assert apart.square().mean().item() == pytest.approx(second, rel=0.06)
    assert apart.pow(4).mean().item() == pytest.approx(fourth, rel=0.1)


def test_extremes_of_the_draw_are_shares_too() -> None:
    found = [
        symmetric_beta(alpha, *at)
        for alpha in (1e-9, 1.0, 1e9)
        for at in [(0.0, 0.1), (1 - 1e-16, 0.6), (0.5, 0.5)]
    ]
    assert all(0 <= share <= 1 for share in found)


def test_mixing_by_hand() -> None:
    images = torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1)
    nothing = torch.zeros(3, 2, dtype=torch.int64)
    shares = torch.tensor([0.75, 0.5, 1.0], dtype=torch.float64)
    drawn = Draws(nothing, nothing[:, 0] > 0, nothing, torch.tensor([2, 1, 0]), shares)
    assert mix(images, drawn).flatten().tolist() == [2.0, 2.0, 5.0]
    assert mix(torch.eye(3), drawn).tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("augment", [Augment(4), Augment(0, True), Augment(4, True), Augment(2, True)])
def test_apply_is_the_loop_over_images(augment: Augment) -> None:
    images = random_images(40)
    before = images.clone()
    drawn = draw(augment, 0, 0, 0, 40, images.shape[1:])
    padded = F.pad(images, (augment.crop,) * 4)
    expected = torch.empty_like(images)
    for i, (row, column) in enumerate(drawn.offsets.tolist()):
        window = padded[i, :, row : row + 9, column : column + 12]
        expected[i] = window.flip(-1) if augment.flip and drawn.flips[i] else window
    result = apply(images, augment, drawn)
    assert result.dtype == torch.uint8 and torch.equal(result, expected)
    assert torch.equal(images, before)


def test_devices_together_are_augmented_as_each_alone() -> None:
    augment = Augment(4, True, 5)
    images = random_images(12)
    drawn = [draw(augment, 0, device, 7, 4, images.shape[1:]) for device in range(3)]
    together = prepare(images, augment, Draws.cat(drawn), MEAN, STD, torch.float32)
    alone = [
        prepare(part, augment, one, MEAN, STD, torch.float32)
        for part, one in zip(images.view(3, 4, *images.shape[1:]), drawn, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_normalise_by_hand() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalise(images, MEAN.double(), STD.double(), torch.float64).flatten()
    expected = torch.tensor([-0.5 / 0.2, (0.2 - 0.4) / 0.25, (1.0 - 0.3) / 0.5], dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_prepare_has_the_asked_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    images = random_images(4)
    result = prepare(images, None, None, MEAN, STD, dtype)
    assert result.dtype == dtype
    exact = torch.promote_types(dtype, torch.float32)
    assert torch.equal(result, normalise(images, MEAN, STD, exact).to(dtype))


@pytest.mark.parametrize("side", [1, 4, 5, 30])
def test_cutout_sets_a_clipped_square_to_the_mean(side: int) -> None:
    images = random_images(20)
    augment = Augment(cutout=side)
    drawn = draw(augment, 0, 0, 0, 20, images.shape[1:])
    expected = normalise(images, MEAN, STD, torch.float32)
    for i, (row, column) in enumerate(drawn.centres.tolist()):
        top, left = row - side // 2, column - side // 2
        expected[i, :, max(top, 0) : top + side, max(left, 0) : left + side] = 0
    assert torch.equal(prepare(images, augment, drawn, MEAN, STD, torch.float32), expected)
