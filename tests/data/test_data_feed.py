"""Batches are functions of seed, device and step: whole passes, joint batches, pixels worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgewise.data import Dataset
from edgewise.data.batches import Augment, draw
from edgewise.data.feed import Feed

COUNT, SIZE = 30, 4
EVERYTHING = Augment.parse("crop:1,flip,cutout:2")
MIXED = Augment.parse("crop:1,flip,cutout:2,mixup:0.5")


def colours(count: int, shift: int) -> Tensor:
    """Images 2x5x6 of which no two are alike: image i holds i + shift everywhere but in one pixel."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 2, 5, 6) + shift
    images = images.clone()
    images[:, 1, 0, 0] = 255
    return images


@pytest.fixture
def dataset() -> Dataset:
    labels = torch.arange(COUNT) % 3
    train, test = (colours(COUNT, 10), labels), (colours(6, 200), labels[:6])
    return Dataset.of("colours", train=train, test=test, moments=((0.1, 0.4), (0.5, 0.2)))


def feed_of(dataset: Dataset, augment: Augment | None = None, seed: int = 0, size: int = SIZE) -> Feed:
    return Feed.of(dataset, size, augment or Augment(), torch.float64, seed)


def by_hand(images: Tensor) -> Tensor:
    first, second = images.double().unbind(1)
    return torch.stack([(first / 255 - 0.1) / 0.5, (second / 255 - 0.4) / 0.2], 1)


def shown(feed: Feed, device: int, indices: Tensor, steps: range) -> list[int]:
    """Which training examples a device sees, by the colour of their first pixel."""
    batches = [feed.batch(device, indices, step)[0] for step in steps]
    values = (torch.cat(batches)[:, 0, 0, 0] * 0.5 + 0.1) * 255
    return [int(value) for value in values.round() - 10]


def test_a_batch_is_normalised_training_images_and_their_labels(dataset: Dataset) -> None:
    feed, indices = feed_of(dataset), torch.arange(3, 20)
    x, y = feed.batch(0, indices, 2)
    picked = torch.tensor(shown(feed, 0, indices, range(2, 3)))
    assert x.shape == (SIZE, 2, 5, 6) and x.dtype == torch.float64 and y.dtype == torch.int64
    assert torch.allclose(x, by_hand(dataset.train.images[picked]), rtol=0, atol=1e-14)
    assert torch.equal(y, dataset.train.labels[picked])
    assert x.is_contiguous(memory_format=torch.channels_last)
    single = Feed.of(dataset, SIZE, Augment(), torch.float32, 0).batch(0, indices, 2)[0]
    assert single.dtype == torch.float32 and torch.allclose(single.double(), x, atol=1e-6)


@pytest.mark.parametrize("count", [12, 5, 3])  # batches that fit passes, straddle them, hold several
def test_every_pass_shows_a_device_each_of_its_examples_once(dataset: Dataset, count: int) -> None:
    feed, indices = feed_of(dataset), torch.arange(7, 7 + count)
    stream = shown(feed, 3, indices, range(3 * count))
    passes = [stream[start : start + count] for start in range(0, len(stream), count)]
    assert len(passes) == 12 and all(sorted(one) == indices.tolist() for one in passes)
    assert len({tuple(one) for one in passes}) > 3  # each in its own order


def test_order_is_addressed_by_seed_and_device(dataset: Dataset) -> None:
    indices = torch.arange(COUNT)
    streams = {
        tuple(shown(feed_of(dataset, seed=seed), device, indices, range(7)))
        for seed in (0, 1)
        for device in (0, 1)
    }
    assert len(streams) == 4


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING], ids=["plain", "augmented"])
def test_resuming_at_a_step_gives_what_running_through_gives(dataset: Dataset, augment: Augment) -> None:
    indices = torch.arange(4, 15)
    through = feed_of(dataset, augment)
    batches = [through.batch(2, indices, step) for step in range(9)]
    resumed = feed_of(dataset, augment).batch(2, indices, 8)
    assert torch.equal(resumed[0], batches[8][0]) and torch.equal(resumed[1], batches[8][1])
    assert not torch.equal(resumed[0], batches[7][0])


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING, MIXED], ids=["plain", "augmented", "mixed"])
def test_a_joint_batch_is_the_devices_batches_end_to_end(dataset: Dataset, augment: Augment) -> None:
    feed = feed_of(dataset, augment)
    parts = [(4, torch.arange(10), 0), (0, torch.arange(10, 13), 5), (7, torch.arange(13, 30), 1)]
    x, y = feed.joint(parts)
    alone = [feed.batch(*part) for part in parts]
    assert torch.equal(x, torch.cat([one for one, _ in alone]))
    assert torch.equal(y, torch.cat([one for _, one in alone]))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_mixup_stays_inside_a_device_and_mixes_what_it_shows(dataset: Dataset) -> None:
    ours, theirs = torch.arange(10), torch.arange(10, 20)
    feed = feed_of(dataset, Augment(mixup=1.0))
    x, y = feed.joint([(0, ours, 3), (1, theirs, 4)])
    (plain, one), (plain_too, two) = (feed_of(dataset).batch(*at) for at in ((0, ours, 3), (1, theirs, 4)))
    classes = len(dataset.classes)
    assert y.shape == (2 * SIZE, classes) and torch.allclose(y.sum(1), torch.ones(2 * SIZE, dtype=y.dtype))
    for start, device, step, images, labels in ((0, 0, 3, plain, one), (SIZE, 1, 4, plain_too, two)):
        drawn = draw(feed.augment, feed.seed, device, step, SIZE, tuple(dataset.train.images.shape[1:]))
        for place in range(SIZE):
            share, other = float(drawn.shares[place]), int(drawn.partners[place])
            mixed = share * images[place] + (1 - share) * images[other]
            assert torch.allclose(x[start + place], mixed, rtol=0, atol=1e-12)
            shares = torch.zeros(classes, dtype=y.dtype)
            shares[labels[place]] += share
            shares[labels[other]] += 1 - share
            assert torch.allclose(y[start + place], shares, rtol=0, atol=1e-12)


def test_mixup_mixes_targets_where_there_are_some(dataset: Dataset) -> None:
    targets = torch.arange(len(dataset.train), dtype=torch.float64).view(-1, 1)
    feed, indices = feed_of(dataset, Augment(mixup=1.0)), torch.arange(9)
    feed = replace(feed, split=replace(feed.split, targets=targets))
    plain, mixed = targets[feed_of(dataset)._pick(0, indices, 0)], feed.batch(0, indices, 0)[1]
    drawn = draw(feed.augment, feed.seed, 0, 0, SIZE, tuple(dataset.train.images.shape[1:]))
    own = drawn.shares.view(-1, 1)
    assert torch.allclose(mixed, own * plain + (1 - own) * plain[drawn.partners], rtol=0, atol=1e-12)


def test_augmentation_is_addressed_by_seed_device_and_step(dataset: Dataset) -> None:
    one = torch.tensor([7])  # the same image at every step: what differs is chance
    feed = feed_of(dataset, EVERYTHING, size=8)
    batches = [
        feed.batch(0, one, 0)[0],
        feed.batch(0, one, 1)[0],
        feed.batch(1, one, 0)[0],
        feed_of(dataset, EVERYTHING, seed=1, size=8).batch(0, one, 0)[0],
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])
    assert len({tuple(image.flatten().tolist()) for image in batches[0]}) > 4  # and within a batch
    assert torch.equal(feed.batch(0, one, 1)[0], batches[1])


def test_augmentation_leaves_order_and_labels_alone(dataset: Dataset) -> None:
    indices = torch.arange(COUNT)
    for step in range(4):
        plain = feed_of(dataset).batch(1, indices, step)
        changed = feed_of(dataset, EVERYTHING).batch(1, indices, step)
        assert torch.equal(plain[1], changed[1]) and not torch.equal(plain[0], changed[0])


def test_evaluation_sees_images_as_they_are(dataset: Dataset) -> None:
    feed = feed_of(dataset, EVERYTHING)
    images = dataset.test.images
    before = images.clone()
    x = feed.plain(images)
    assert torch.allclose(x, by_hand(images), rtol=0, atol=1e-14)
    assert torch.equal(images, before) and x.is_contiguous(memory_format=torch.channels_last)


def test_a_feed_is_a_value(dataset: Dataset) -> None:
    feed = feed_of(dataset)
    later = replace(feed, seed=9)
    assert feed.seed == 0 and shown(feed, 0, torch.arange(9), range(3)) != shown(
        later, 0, torch.arange(9), range(3)
    )
