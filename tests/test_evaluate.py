"""Evaluation against a slow, plain reading: one example at a time, one device at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from edgewise.data import Dataset
from edgewise.data.batches import Augment
from edgewise.data.feed import Feed
from edgewise.evaluate import BATCH, Evaluation, evaluate, per_device
from edgewise.vector import FlatModel, Layout

CLASSES, ABSENT = 5, 3
TEST = 2 * BATCH + 77  # several batches and a rest


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (TEST, 2, 3, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (TEST,), generator=generator)
    labels[labels == ABSENT] = 0
    names = [str(label) for label in range(CLASSES)]
    return Dataset.of("noise", train=(images[:20], labels[:20]), test=(images, labels), classes=names)


@pytest.fixture
def model() -> FlatModel:
    """Whose answers depend on the mode: batch norm off its start, and dropout."""
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, CLASSES), nn.Dropout(0.5)).double()
    with torch.no_grad():
        module.get_buffer("0.running_mean").add_(0.5)
        module.get_parameter("2.weight").mul_(5)
    return FlatModel(module, Layout.of(module))


def feed_of(dataset: Dataset, augment: str = "none") -> Feed:
    return Feed.of(dataset, 4, Augment.parse(augment), torch.float64, 0)


def slowly(model: FlatModel, dataset: Dataset) -> Evaluation:
    module = copy.deepcopy(model.module).eval()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(2, 1, 1) for v in (dataset.mean, dataset.std))
    right, seen, loss = [0] * CLASSES, [0] * CLASSES, 0.0
    for image, label in zip(dataset.test.images, dataset.test.labels.tolist(), strict=True):
        odds = module(((image.double() / 255 - mean) / std)[None])[0].softmax(0).tolist()
        seen[label] += 1
        right[label] += odds.index(max(odds)) == label
        loss -= math.log(odds[label])
    recall = tuple(r / s if s else None for r, s in zip(right, seen, strict=True))
    return Evaluation(sum(right) / sum(seen), loss / sum(seen), recall)


def test_evaluation_is_the_slow_reading(model: FlatModel, dataset: Dataset) -> None:
    model.module.train()
    found, expected = evaluate(model, dataset.test, feed_of(dataset), CLASSES), slowly(model, dataset)
    assert 0.05 < expected.accuracy < 0.95
    assert found.accuracy == pytest.approx(expected.accuracy, abs=1e-7)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.per_class == pytest.approx(expected.per_class)
    assert [recall is None for recall in found.per_class] == [label == ABSENT for label in range(CLASSES)]


def test_evaluation_changes_nothing(model: FlatModel, dataset: Dataset) -> None:
    before = model.read()
    evaluate(model, dataset.test, feed_of(dataset), CLASSES)
    assert torch.equal(model.params, before.params) and torch.equal(model.buffers, before.buffers)
    assert not model.grads.any()
    model.check()


def test_evaluation_knows_no_augmentation(model: FlatModel, dataset: Dataset) -> None:
    plain, augmented = (
        evaluate(model, dataset.test, feed_of(dataset, words), CLASSES) for words in ("none", "crop,flip")
    )
    assert plain == augmented


def test_a_device_sees_the_recall_of_its_own_mix_of_classes() -> None:
    recall = (0.9, 0.5, None, 0.0)
    counts = torch.tensor([[10, 10, 0, 0], [0, 0, 0, 7], [1, 3, 100, 0], [0, 0, 5, 0], [1, 1, 1, 2]])
    expected = [(0.9 + 0.5) / 2, 0, (0.9 + 3 * 0.5) / 4, None, (0.9 + 0.5) / 4]
    assert per_device(recall, counts) == pytest.approx(expected, abs=1e-6)


def test_on_test_data_like_its_own_a_device_would_see_that_accuracy(
    model: FlatModel, dataset: Dataset
) -> None:
    """One device that holds the test set's own mix of classes sees the overall accuracy."""
    found = evaluate(model, dataset.test, feed_of(dataset), CLASSES)
    mix = torch.bincount(dataset.test.labels, minlength=CLASSES)[None]
    assert per_device(found.per_class, mix) == pytest.approx([found.accuracy], abs=1e-6)
