"""Partitions: every example dealt once, the reference layouts, and errors instead of empty devices."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgewise.data.dataset import Split
from edgewise.data.partition import (
    Dirichlet,
    Iid,
    Labels,
    Partition,
    Quantity,
    UnheldClasses,
    alike,
    deal,
)
from edgewise.errors import EdgewiseError


def split_of(labels: list[int] | Tensor) -> Split:
    labels = torch.as_tensor(labels)
    return Split(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)


def balanced(classes: int, each: int) -> Split:
    return split_of(torch.arange(classes * each) % classes)


def held(parts: list[Tensor], split: Split) -> list[list[int]]:
    return [sorted(set(split.labels[part].tolist())) for part in parts]


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    devices=st.integers(1, 12),
    partition=st.one_of(
        st.just(Iid()),
        st.builds(Labels, k=st.integers(1, 5), overlap=st.booleans()),
        st.builds(Dirichlet, alpha=st.floats(0.05, 50)),
        st.builds(Quantity, s=st.floats(0.05, 50)),
    ),
    seed=st.integers(0, 2**40),
)
def test_every_held_example_is_dealt_exactly_once(
    labels: list[int], devices: int, partition: Partition, seed: int
) -> None:
    split = split_of(labels)
    classes = set(range(5))
    if isinstance(partition, Labels):
        stride = 1 if partition.overlap else partition.k
        classes = {(d * stride + i) % 5 for d in range(devices) for i in range(partition.k)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnheldClasses)
        try:
            parts = deal(partition, split, 5, devices, seed)
        except EdgewiseError as error:
            assert "\n" not in str(error)
            assume(False)
    assert len(parts) == devices
    assert all(part.dtype == torch.int64 and len(part) for part in parts)
    expected = [index for index, label in enumerate(labels) if label in classes]
    assert sorted(torch.cat(parts).tolist()) == expected


def test_labels_2_is_the_reference_layout() -> None:
    split = balanced(10, 10)
    parts = deal(Labels(2), split, 10, 5, seed=0)
    assert held(parts, split) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [len(part) for part in parts] == [20] * 5


def test_labels_2_wraps_and_shares_a_class_evenly() -> None:
    split = balanced(10, 11)
    parts = deal(Labels(2), split, 10, 10, seed=0)
    assert held(parts, split) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]] * 2
    assert [len(part) for part in parts] == [12] * 5 + [10] * 5


def test_labels_2_overlap_shifts_by_one_class() -> None:
    split = balanced(10, 10)
    parts = deal(Labels(2, overlap=True), split, 10, 10, seed=0)
    assert held(parts, split) == [sorted([d, (d + 1) % 10]) for d in range(10)]
    for part in parts:
        assert torch.bincount(split.labels[part], minlength=10).max() == 5


def test_the_examples_of_a_class_are_shuffled_before_they_are_dealt() -> None:
    split = balanced(2, 100)
    parts = deal(Labels(2), split, 2, 2, seed=0)
    assert parts[0].max() > 150 and parts[1].min() < 50


def test_unheld_classes_warn_and_go_unused() -> None:
    split = balanced(10, 10)
    with pytest.warns(UnheldClasses, match=r"class 4, 5, 6, 7, 8, 9; 60 examples go unused"):
        parts = deal(Labels(2), split, 10, 2, seed=0)
    assert held(parts, split) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("partition", [Iid(), Labels(2), Dirichlet(0.5), Quantity(1.0)])
def test_the_seed_decides(partition: Partition) -> None:
    split = balanced(10, 50)
    first, again, other = (deal(partition, split, 10, 10, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_is_even_in_size_and_random_in_content() -> None:
    split = split_of(torch.arange(1000) // 100)
    parts = deal(Iid(), split, 10, 7, seed=0)
    assert sorted({len(part) for part in parts}) == [142, 143]
    assert held(parts, split) == [list(range(10))] * 7


def test_dirichlet_is_more_skewed_for_smaller_alpha() -> None:
    def largest_share(alpha: float) -> float:
        split = balanced(10, 200)
        parts = deal(Dirichlet(alpha), split, 10, 10, seed=0)
        table = torch.stack([torch.bincount(split.labels[part], minlength=10) for part in parts])
        return float((table.max(dim=0).values / 200).mean())

    assert largest_share(0.1) > 0.5 > 0.2 > largest_share(100.0)


def test_quantity_skews_the_sizes_but_not_the_content() -> None:
    split = split_of(torch.arange(10_000) // 1000)
    parts = deal(Quantity(0.5), split, 10, 5, seed=0)
    sizes = [len(part) for part in parts]
    assert max(sizes) > 3 * min(sizes)
    largest = split.labels[max(parts, key=len)]
    assert torch.bincount(largest, minlength=10).float().div(len(largest)).sub(0.1).abs().max() < 0.03


def test_draws_again_while_a_device_is_empty() -> None:
    split = balanced(2, 10)
    first = np.random.default_rng(3)
    emptied = 0
    for _ in range(50):
        parts = Quantity(0.5).deal(split.labels.numpy(), 2, 5, first)
        emptied += min(len(part) for part in parts) == 0
    assert emptied == 0  # a single draw empties a device in most of these


@pytest.mark.parametrize("partition", [Dirichlet(0.1), Quantity(0.1)])
def test_a_hopeless_skew_is_a_quick_error(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.data.partition.REDRAWS", 10_000)  # minutes, if all were made
    begin = time.monotonic()
    with pytest.raises(
        EdgewiseError, match=r"without examples: use a larger (alpha|s) or fewer devices"
    ) as error:
        deal(partition, balanced(10, 2000), 10, 15_000, seed=0)
    assert "\n" not in str(error.value)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("partition", [Dirichlet(0.01), Quantity(0.01)])
def test_redrawing_ends_where_it_only_just_fails(partition: Partition) -> None:
    with pytest.raises(EdgewiseError, match="without examples"):
        deal(partition, balanced(2, 20), 2, 40, seed=0)


@pytest.mark.parametrize("partition", [Iid(), Labels(2), Dirichlet(100.0), Quantity(100.0)])
def test_a_hundred_thousand_devices_take_seconds(partition: Partition) -> None:
    begin = time.process_time()
    parts = deal(partition, balanced(10, 100_000), 10, 100_000, seed=0)
    assert len(parts) == 100_000
    assert time.process_time() - begin < 10  # a scan of the examples for each device takes minutes


def test_the_first_empty_device_is_named() -> None:
    # Five examples of class 1 for the three holders 1, 3, 5, but one example of class 0 for 0, 2, 4.
    with pytest.raises(EdgewiseError, match="leaves device 2 of 6 without examples"):
        deal(Labels(1), split_of([0, 1, 1, 1, 1, 1]), 2, 6, seed=0)


@pytest.mark.parametrize(
    ("devices", "message"),
    [(0, "legal: 1 to 20"), (-1, "legal: 1 to 20"), (21, "21 devices cannot share 20")],
)
def test_the_number_of_devices_is_checked(devices: int, message: str) -> None:
    with pytest.raises(EdgewiseError, match=message):
        deal(Iid(), balanced(2, 10), 2, devices, seed=0)


def test_illegal_settings_name_the_legal_ones() -> None:
    with pytest.raises(EdgewiseError, match="legal"):
        Labels(0)
    with pytest.raises(EdgewiseError, match="legal for this data: 1 to 10"):
        deal(Labels(11), balanced(10, 10), 10, 2, seed=0)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(EdgewiseError, match="above 0"):
            Dirichlet(value)
        with pytest.raises(EdgewiseError, match="above 0"):
            Quantity(value)


# ---- other examples in the same mix ----


@settings(deadline=None, max_examples=60)
@given(data=st.data(), devices=st.integers(1, 6), classes=st.integers(1, 5))
def test_other_examples_are_shared_out_as_the_first_ones_were(
    data: st.DataObject, devices: int, classes: int
) -> None:
    row = st.lists(st.integers(0, 20), min_size=classes, max_size=classes)
    table = torch.tensor(data.draw(st.lists(row, min_size=devices, max_size=devices)))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), max_size=80)), dtype=torch.int64)
    parts = alike(table, labels)
    assert len(parts) == devices and all(part.dtype == torch.int64 for part in parts)
    owned = table.sum(0) > 0  # a class that nobody holds is nobody's
    assert sorted(torch.cat(parts).tolist()) == owned[labels].nonzero().flatten().tolist()
    for device, part in enumerate(parts):
        for label in range(classes):
            total = int(table[:, label].sum())
            exact = int((labels == label).sum()) * int(table[device, label]) / total if total else 0.0
            assert abs(int((labels[part] == label).sum()) - exact) < 1
    assert all(torch.equal(one, two) for one, two in zip(parts, alike(table, labels), strict=True))


def test_a_device_is_tested_on_the_mix_that_it_trains_on() -> None:
    train, test = balanced(10, 40), balanced(10, 20)
    parts = deal(Labels(2), train, 10, 5, 0)
    table = torch.stack([torch.bincount(train.labels[part], minlength=10) for part in parts])
    tests = alike(table, test.labels)
    assert held(tests, test) == held(parts, train) == [[2 * d, 2 * d + 1] for d in range(5)]
    assert [len(part) for part in tests] == [40] * 5


def test_where_nobody_holds_anything_nothing_is_shared_out() -> None:
    parts = alike(torch.zeros(3, 2, dtype=torch.int64), torch.tensor([0, 1, 1]))
    assert [part.tolist() for part in parts] == [[]] * 3
