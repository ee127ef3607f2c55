"""Every rule by one contract, against a plain reference, and against devices that send garbage."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import edgewise
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgewise import data, records, specs
from edgewise.aggregators import (
    AGGREGATORS,
    Aggregator,
    Clip,
    ClipMedian,
    FedExP,
    Krum,
    Median,
    MultiKrum,
    TrimmedMean,
    WeightedMean,
    stack,
)
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.assemble import Parts, assemble
from edgewise.codecs import Raw, Sending
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.device import Reply, Task
from edgewise.engines import Inline
from edgewise.errors import EdgewiseError
from edgewise.evaluate import evaluate
from edgewise.memories import Memories
from edgewise.models.norms import BatchSync
from edgewise.optimizers import SGD
from edgewise.rounds import Progress, _round, run
from edgewise.vector import Layout, Mean, State

# A rule's first text is its plain form; the others take other paths through its file.
TEXTS: dict[str, list[str]] = {
    "mean": ["mean"],
    "median": ["median"],
    "trimmed": ["trimmed:0.2", "trimmed:0.45"],
    "krum": ["krum:2", "krum:0"],
    "multi-krum": ["multi-krum:2", "multi-krum:2:1", "multi-krum:1:4"],
    "clip": ["clip:2", "clip:1000000"],
    "clip-median": ["clip-median"],
    "fedexp": ["fedexp", "fedexp:1"],
}
RULES = [text for name in AGGREGATORS for text in TEXTS.get(name, [])]
WEIGHTED = ("mean", "clip", "clip-median", "fedexp")  # by examples; the others count devices
SORTING = ("median", "trimmed")  # whose sums are taken in sorted order, so that the bits are the same too

every_rule = pytest.mark.parametrize("text", RULES)


def rule_of(text: str) -> Aggregator:
    rule: Aggregator = specs.parse(AGGREGATORS, text, "aggregate")
    return rule


def combined(
    rule: Aggregator, states: Sequence[State], weights: Sequence[float] = (), folder: Path | None = None
) -> State:
    gathering = rule.start(states[0], folder)
    for state, weight in zip(states, weights or [1.0] * len(states), strict=True):
        gathering.add(state, weight)
    return gathering.value()


def updates(count: int, size: int = 50, buffers: int = 5, dtype: torch.dtype = torch.float32) -> list[State]:
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randn(count, size + buffers, generator=generator, dtype=torch.float64).to(dtype)
    return [State(row[:size].clone(), row[size:].clone()) for row in drawn]


def whole(state: State) -> torch.Tensor:
    return torch.cat([state.params, state.buffers])


def same(one: State, two: State) -> bool:
    return torch.equal(one.params, two.params) and torch.equal(one.buffers, two.buffers)


# ---- the contract ----


def test_every_rule_is_tested() -> None:
    assert TEXTS.keys() == AGGREGATORS.keys()
    assert all(specs.name_of(AGGREGATORS, rule_of(text)) == name for name in TEXTS for text in TEXTS[name])


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_updates_come_to_that_update(text: str, dtype: torch.dtype) -> None:
    one = State(updates(1, dtype=dtype)[0].params / 10, updates(1, dtype=dtype)[0].buffers)
    assert one.params.norm() < 2  # which clip:2 lets through
    for count in (7, 8):
        value = combined(rule_of(text), [one] * count)
        assert value.params.dtype == value.buffers.dtype == dtype
        assert torch.allclose(whole(value), whole(one), rtol=1e-6, atol=0)
        if text.split(":")[0] not in WEIGHTED and dtype == torch.float32:
            assert "multi" in text or same(value, one)


@every_rule
def test_the_order_of_devices_does_not_matter(text: str) -> None:
    states = updates(9)
    weights = [float(weight) for weight in range(1, 10)]
    value = combined(rule_of(text), states, weights)
    for seed in range(5):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed)).tolist()
        other = combined(rule_of(text), [states[i] for i in order], [weights[i] for i in order])
        assert torch.allclose(whole(other), whole(value), rtol=1e-4, atol=1e-6)
        assert text.split(":")[0] not in SORTING or same(other, value)


@every_rule
def test_examples_count_where_they_should(text: str) -> None:
    states = updates(8)
    evenly, unevenly = (combined(rule_of(text), states, w) for w in ([1.0] * 8, [50.0] + [1.0] * 7))
    assert same(evenly, unevenly) == (text.split(":")[0] not in WEIGHTED)
    if text.split(":")[0] in WEIGHTED:
        alone = combined(rule_of(text), states, [1e12] + [1.0] * 7)
        assert torch.allclose(alone.buffers, states[0].buffers, atol=1e-5)


@every_rule
def test_only_the_mean_is_linear(text: str) -> None:
    """What is linear is exactly the mean, the same arithmetic in the same order."""
    states, weights = updates(8), [float(weight) for weight in range(1, 9)]
    mean = Mean(states[0])
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    rule = rule_of(text)
    assert rule.linear == (rule == WeightedMean())
    if rule.linear:
        assert same(combined(rule, states, weights), mean.value())


@every_rule
def test_what_comes_in_is_copied_and_left_alone(text: str) -> None:
    states = updates(8)
    expected = combined(rule_of(text), [state.clone() for state in states])
    gathering = rule_of(text).start(states[0])
    passing = State(torch.empty(50), torch.empty(5))  # one place for all, as a decoder might have
    for state in states:
        passing.params.copy_(state.params), passing.buffers.copy_(state.buffers)
        gathering.add(passing, 1.0)
        assert same(passing, state)
        passing.params.fill_(torch.nan), passing.buffers.fill_(torch.nan)
    assert same(gathering.value(), expected)


@every_rule
@pytest.mark.parametrize("buffers", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_and_small_blocks_change_no_bit(
    text: str, buffers: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weights = updates(9, buffers=buffers, dtype=dtype), [float(weight) for weight in range(1, 10)]
    in_ram = combined(rule_of(text), states, weights, None)
    for budget in (0, 3 * (50 + buffers) * dtype.itemsize, 2**30):
        monkeypatch.setattr(stack, "BUDGET", budget)
        assert same(combined(rule_of(text), states, weights, tmp_path), in_ram)
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(stack, "BLOCK", 9 * 7 * dtype.itemsize)  # 7 columns
    assert torch.allclose(whole(combined(rule_of(text), states, weights, tmp_path)), whole(in_ram), rtol=1e-6)


@every_rule
def test_a_rule_forgets_a_round_with_its_value(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "BUDGET", 0)
    opened = len(os.listdir("/dev/fd"))
    gathering = rule_of(text).start(updates(1)[0], tmp_path)
    for state in updates(9):
        gathering.add(state, 1.0)
    gathering.value()
    assert len(os.listdir("/dev/fd")) == opened
    given_up = rule_of(text).start(updates(1)[0], tmp_path)
    given_up.add(updates(1)[0], 1.0)
    del given_up  # as where a device fails in mid-round
    assert len(os.listdir("/dev/fd")) == opened


@every_rule
def test_buffers_have_memory_of_their_own(text: str) -> None:
    """They outlive the round on the coordinator, and would keep a vector with them."""
    value = combined(rule_of(text), updates(9))
    assert value.buffers.untyped_storage().nbytes() == value.buffers.nbytes


@every_rule
def test_the_value_of_no_updates_is_refused(text: str) -> None:
    with pytest.raises((RuntimeError, EdgewiseError), match=r"no updates|takes \d updates"):
        rule_of(text).start(updates(1)[0]).value()


# Numbers of its own process: what it holds at the peak, before and after it takes in 100 updates of 4 MB.
ROUND = """
import sys
from pathlib import Path
import torch
from edgewise import specs
from edgewise.aggregators import AGGREGATORS, stack
from edgewise.vector import State

def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

stack.BUDGET = 4 * 2**20
for count in (9, int(sys.argv[2])):  # the first time, code is loaded
    like = State(torch.zeros(2**20), torch.zeros(0))
    before, gathering = most(), specs.parse(AGGREGATORS, sys.argv[1], "aggregate").start(like, Path.cwd())
    for device in range(count):
        gathering.add(State(torch.randn(2**20), torch.zeros(0)), 1.0)
    gathering.value()
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("text", [texts[0] for texts in TEXTS.values()])
def test_many_updates_take_no_more_memory_than_few(text: str, tmp_path: Path) -> None:
    done = edgewise(text, 40, folder=tmp_path, program=ROUND)
    assert done.status == 0, done
    assert int(done.out) < 24 * 2**20, "40 updates of 4 MiB after 9"


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: more is refused as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("text", ["median", "trimmed:0.2", "krum:2", "multi-krum:2", "clip-median"])
def test_a_full_disk_is_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BUDGET", 2**18)
    gathering = rule_of(text).start(updates(1, 2**15)[0], tmp_path)
    says = f"^{tmp_path}: the round's updates cannot be written \\(File too large\\)$"
    with small_files(2**20), pytest.raises(EdgewiseError, match=says):
        for state in updates(20, 2**15):
            gathering.add(state, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BUDGET", 0)
    gathering = Median().start(updates(1)[0], tmp_path / "gone")
    with pytest.raises(EdgewiseError, match=r"gone: the round's updates cannot be written \(No such file"):
        gathering.add(updates(1)[0], 1.0)


def test_an_update_of_another_length_is_refused() -> None:
    gathering = Median().start(updates(1)[0])
    with pytest.raises(ValueError, match="a row of 49 values among rows of 55"):
        gathering.add(updates(1, size=44)[0], 1.0)


# ---- by hand ----


def line(*values: float, buffers: Sequence[float] = ()) -> list[State]:
    """Devices with one parameter, and one buffer that is -1 times as much or as told."""
    rest = buffers or [-value for value in values]
    return [State(torch.tensor([a]), torch.tensor([b])) for a, b in zip(values, rest, strict=True)]


@pytest.mark.parametrize(
    ("text", "values", "params", "buffers"),
    [
        ("mean", (1.0, 2.0, 6.0), 3.0, -3.0),
        ("median", (1.0, 2.0, 9.0), 2.0, -2.0),
        ("median", (9.0, 1.0, 2.0, 4.0), 3.0, -3.0),
        ("median", (5.0,), 5.0, -5.0),
        ("trimmed:0.25", (8.0, 1.0, 2.0, 4.0), 3.0, -3.0),  # without 1 and 8
        ("trimmed:0.2", (0.0, 1.0, 2.0, 6.0, 9.0), 3.0, -3.0),
        ("trimmed:0.4", (0.0, 1.0, 2.0, 6.0, 9.0), 2.0, -2.0),
        ("trimmed:0.49", (0.0, 1.0, 3.0, 9.0), 2.0, -2.0),  # one at each end: two are never all
        # Scores of krum:1 among five, two neighbours each: 1 + 16, 1 + 9, 4 + 9, 4 + 9, 9 + 25.
        ("krum:1", (0.0, 1.0, 4.0, 6.0, 9.0), 1.0, -4.0),
        ("multi-krum:1", (0.0, 1.0, 4.0, 6.0, 9.0), 2.5, -4.0),  # 1 and 4, the first of two equal scores
        ("multi-krum:1:4", (0.0, 1.0, 4.0, 6.0, 9.0), 2.75, -4.0),
        ("clip:2", (1.0, -2.0, 5.0), 1 / 3, -4 / 3),  # 1 - 2 + 2
        ("clip-median", (1.0, -2.0, 6.0), 1 / 3, -5 / 3),  # at 2
        ("fedexp", (1.0, -2.0, 5.0), 3.75, -4 / 3),  # 4 / 3, times 10 / (2 * 16 / 9)
        ("fedexp:2", (1.0, -2.0, 5.0), 8 / 3, -4 / 3),
        ("fedexp", (1.0, 2.0, 6.0), 3.0, -3.0),  # they agree well enough
        ("fedexp", (1.0, -1.0), 0.0, 0.0),
    ],
)
def test_numbers_by_hand(text: str, values: tuple[float, ...], params: float, buffers: float) -> None:
    value = combined(rule_of(text), line(*values))
    assert value.params.tolist() == pytest.approx([params])
    assert value.buffers.tolist() == pytest.approx([buffers])


def test_clip_scales_and_weighs() -> None:
    states = [
        State(torch.tensor([3.0, 4.0]), torch.tensor([1.0])),
        State(torch.tensor([0.3, 0.4]), torch.tensor([2.0])),
    ]
    value = combined(Clip(2.5), states, [1.0, 3.0])
    assert value.params.tolist() == pytest.approx([(1.5 + 0.9) / 4, (2.0 + 1.2) / 4])
    assert value.buffers.tolist() == pytest.approx([7 / 4])
    assert same(combined(Clip(5.0), states, [1.0, 3.0]), combined(WeightedMean(), states, [1.0, 3.0]))


def test_clip_median_is_clip_at_the_median() -> None:
    states, weights = updates(9), [float(weight) for weight in range(1, 10)]
    norm = float(np.median([float(state.params.double().norm()) for state in states]))
    assert same(combined(ClipMedian(), states, weights), combined(Clip(norm), states, weights))


def test_fedexp_weighs_lengths_by_examples() -> None:
    """Ten at right angles, one of them twice as long and worth eleven."""
    states = [State(torch.eye(10, dtype=torch.float64)[i], torch.zeros(1)) for i in range(10)]
    states[3] = State(2 * states[3].params, torch.zeros(1))
    weights = [11.0 if i == 3 else 1.0 for i in range(10)]
    mean = torch.full((10,), 1 / 20, dtype=torch.float64)
    mean[3] = 22 / 20
    # (11 * 4 + 9) / 20 over 2 (22^2 + 9) / 20^2
    factor = (53 / 20) / (2 * 493 / 400)
    assert 1 < factor < 2
    assert torch.allclose(combined(FedExP(9), states, weights).params, factor * mean, rtol=1e-12)
    assert torch.allclose(combined(FedExP(1.01), states, weights).params, 1.01 * mean, rtol=1e-12)
    two = [states[0], states[1]]
    assert torch.allclose(
        combined(FedExP(9), two, [1.0, 1.0]).params, (states[0].params + states[1].params) / 2
    )


def test_fedexp_of_one_is_the_mean() -> None:
    states, weights = updates(9), [float(weight) for weight in range(1, 10)]
    assert same(combined(FedExP(1.0), states, weights), combined(WeightedMean(), states, weights))


def test_multi_krum_of_one_is_krum() -> None:
    states = updates(9)
    assert same(combined(MultiKrum(2, 1), states), combined(Krum(2), states))
    chosen = combined(Krum(2), states).params
    assert any(torch.equal(chosen, state.params) for state in states)


def test_krum_looks_past_what_all_updates_share() -> None:
    """A large common part costs digits of the distances, not the choice."""
    states = updates(9, size=1000, buffers=0)
    shift = torch.full((1000,), 1000.0)
    moved = [State(state.params + shift, state.buffers) for state in states]
    chosen, expected = combined(Krum(2), moved).params, combined(Krum(2), states).params
    assert torch.equal(chosen, expected + shift)


# ---- against a plain reference ----

Rows = NDArray[np.float64]


def plain_trimmed(rows: Rows, share: float) -> Rows:
    cut = min(int(share * len(rows) + 1e-9), (len(rows) - 1) // 2)
    return np.array([np.mean(sorted(column)[cut : len(column) - cut]) for column in rows.T])


def plain_scores(rows: Rows, faulty: int) -> list[float]:
    found = []
    for i, one in enumerate(rows):
        distances = sorted(float(((one - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        found.append(sum(distances[: len(rows) - faulty - 2]))
    return found


def plain_clip(rows: Rows, norm: float) -> Rows:
    return np.mean([row * min(1, norm / max(float(np.linalg.norm(row)), 1e-300)) for row in rows], axis=0)


def matrix_of(shape: tuple[int, int]) -> st.SearchStrategy[list[list[float]]]:
    rows, columns = shape
    row = st.lists(st.floats(-1e6, 1e6, width=32), min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows)


matrices = st.tuples(st.integers(3, 9), st.integers(1, 6)).flatmap(matrix_of)


@given(matrices)
def test_every_rule_is_its_plain_reference(drawn: list[list[float]]) -> None:
    rows = np.array(drawn)
    states = [State(torch.tensor(row, dtype=torch.float64), torch.zeros(0).double()) for row in drawn]
    norms = np.linalg.norm(rows, axis=1)
    for rule, expected in [
        (WeightedMean(), rows.mean(0)),
        (Median(), np.median(rows, axis=0)),
        (TrimmedMean(0.4), plain_trimmed(rows, 0.4)),
        (Clip(1000.0), plain_clip(rows, 1000.0)),
        (ClipMedian(), plain_clip(rows, float(np.median(norms)))),
    ]:
        value = combined(rule, states).params.numpy()
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-7), rule
    faulty = (len(rows) - 3) // 2
    found, scores = combined(Krum(faulty), states).params.numpy(), plain_scores(rows, faulty)
    chosen = [score for score, row in zip(scores, rows, strict=True) if np.array_equal(row, found)]
    assert min(chosen) <= min(scores) + 1e-12 * float((norms**2).sum()), "one of the best, but for rounding"


# ---- devices that send garbage ----

GARBAGE = {"huge": 1e30, "largest": 3.4e38, "negative": -1e30, "inf": math.inf, "nan": math.nan}
ROBUST = ["median", "trimmed:0.25", "krum:2", "multi-krum:2"]


def with_garbage(value: float, where: Sequence[int], both: bool = False) -> tuple[list[State], torch.Tensor]:
    """Nine updates, some of them garbage of one sign or of both; and the honest ones (devices, values)."""
    states = updates(9)
    honest = torch.stack([whole(state) for index, state in enumerate(states) if index not in where])
    for number, index in enumerate(where):
        for part in (states[index].params, states[index].buffers):
            part.fill_(-value if both and number % 2 else value)
    return states, honest


@pytest.mark.parametrize("text", ROBUST)
@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("where", [(0, 1), (3, 8)])
@pytest.mark.parametrize("both", [False, True])
def test_garbage_stays_without_effect(text: str, kind: str, where: tuple[int, ...], both: bool) -> None:
    states, honest = with_garbage(GARBAGE[kind], where, both)
    value = whole(combined(rule_of(text), states))
    assert (value >= honest.min(0).values).all() and (value <= honest.max(0).values).all()


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_carries_the_mean_away(kind: str) -> None:
    states, honest = with_garbage(GARBAGE[kind], (3, 8))
    value = whole(combined(WeightedMean(), states))
    assert not ((value >= honest.min(0).values) & (value <= honest.max(0).values)).any()


@pytest.mark.parametrize("text", ["clip:8", "clip-median"])
@pytest.mark.parametrize("kind", ["huge", "largest", "negative"])
def test_a_clipped_update_moves_the_mean_by_its_share(text: str, kind: str) -> None:
    states, honest = with_garbage(GARBAGE[kind], (3, 8))
    lengths = [float(state.params.double().norm()) for state in states]
    norm = 8.0 if text == "clip:8" else float(np.median(lengths))
    shortened = honest[:, :50] * (norm / honest[:, :50].norm(dim=1, keepdim=True)).clamp(max=1)
    moved = combined(rule_of(text), states).params - shortened.sum(0) / 9
    assert float(moved.norm()) == pytest.approx(2 / 9 * norm, rel=1e-4)


def test_more_garbage_than_was_told_of_is_too_much() -> None:
    states, honest = with_garbage(1e30, (0, 1, 2, 3, 4))
    for text in ROBUST:
        value = whole(combined(rule_of(text), states))
        assert (value > honest.max(0).values).any(), text


# ---- too few updates, and what cannot be ----


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (WeightedMean(), 1),
        (Median(), 1),
        (TrimmedMean(0.1), 10),
        (TrimmedMean(0.29), 4),
        (TrimmedMean(0.49), 3),
        (TrimmedMean(1 / 3), 3),
        (Krum(0), 3),
        (Krum(2), 7),
        (MultiKrum(2), 7),
        (MultiKrum(2, 6), 8),
        (Clip(1.0), 1),
        (ClipMedian(), 1),
    ],
)
def test_too_few_updates_are_told_early_and_late(rule: Aggregator, least: int) -> None:
    for count in range(1, least):
        says = rf"^aggregate: .*\b{count}\b"
        with pytest.raises(EdgewiseError, match=says) as early:
            Config(devices=count, aggregate=rule)
        with pytest.raises(EdgewiseError, match=says) as late:
            combined(rule, updates(count))
        assert str(early.value) == str(late.value) and "\n" not in str(late.value)
    Config(devices=least, aggregate=rule)
    combined(rule, updates(least))


def test_a_share_of_a_cohort_is_what_decimals_say() -> None:
    assert [TrimmedMean(0.29).cut(count) for count in (3, 4, 100)] == [0, 1, 29]
    assert [TrimmedMean(0.1).cut(count) for count in (9, 10, 29, 30)] == [0, 1, 2, 3]
    assert [TrimmedMean(0.4999999999999).cut(count) for count in (2, 3, 4, 10)] == [0, 1, 1, 4]


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("krum:4", {}, "krum with 4 faulty devices takes 11 updates or more (2 F + 3), and there are 10"),
        (
            "krum:1",
            {"cohort": 4},
            "krum with 1 faulty devices takes 5 updates or more (2 F + 3), and there are 4",
        ),
        (
            "multi-krum:2:9",
            {},
            "multi-krum averages 9 updates of which none may be faulty; "
            "with 2 faulty of 10 at most 8 are left",
        ),
        ("multi-krum:2:-1", {}, "multi-krum averages -1 updates; legal: 1 or more, or 0 for n - F - 2"),
        ("krum:-1", {}, "krum with -1 faulty devices; legal: 0 or more"),
        ("trimmed:0.05", {}, "trimmed:0.05 cuts none of 10 updates; it takes 20 or more, or a larger share"),
        ("trimmed:0.4", {"devices": 2}, "trimmed:0.4 cuts none of 2 updates; it takes 3 or more"),
        ("trimmed:0.5", {}, "trimmed cuts a share of 0.5 at each end; legal: above 0, below 0.5"),
        ("trimmed:0", {}, "trimmed cuts a share of 0 at each end; legal: above 0, below 0.5"),
        ("clip:0", {}, "clip at a norm of 0; legal: above 0"),
        ("clip", {}, "'clip' lacks a value; its form is clip:NORM"),
        ("krum:x", {}, "'krum:x' does not fit the form krum:FAULTY"),
    ],
)
def test_what_cannot_be_is_one_line(text: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgewiseError) as told:
        Config.of({"aggregate": text, **more})
    assert str(told.value) == f"aggregate: {says}"


# ---- whole rounds ----

# A linear classifier, with running statistics so that there are buffers to garble.
LINEAR = """
from torch import nn

def linear(shape, classes):
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(pixels, affine=False), nn.Linear(pixels, classes))
"""


class Garbling(Inline):
    """Some devices are faulty: they train as told, and then send something else."""

    def __init__(self, parts: Parts, faulty: Sequence[int], factor: float, buffers: bool) -> None:
        super().__init__(parts.devices, parts.model, parts.work, Memories())
        self.faulty, self.factor, self.buffers = faulty, factor, factor if buffers else 1.0

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        for reply in super().ask(task, cohort):
            if reply.devices[0] in self.faulty:
                update = Raw().decode(reply.payload, self.model.layout, torch.float32) * self.factor
                payload, _ = Raw().encode(update, Layout.vector(len(update)), {}, Sending())
                reply = replace(reply, payload=payload, buffers=reply.buffers * self.buffers)
            yield reply


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "linear_models.py").write_text(LINEAR)
    monkeypatch.syspath_prepend(tmp_path)
    return "linear_models:linear"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


def accuracy(
    digits: Dataset, model: str, aggregate: str, factor: float, algorithm: Any, buffers: bool = True
) -> float:
    """After 29 rounds in which two of seven devices multiply what they send, their buffers too or not."""
    config = Config(devices=7, batch=16, model=model, steps=30 * algorithm.sync_every, algorithm=algorithm)
    parts = assemble(replace(config, eval_every=0, fused="off", aggregate=rule_of(aggregate)), digits)
    engine, progress = Garbling(parts, (1, 4), factor, buffers), Progress.start(parts)
    for _ in range(parts.rounds - 1):  # the last one would evaluate, and stop where all is lost
        _round(parts, engine, progress)
    parts.model.write(progress.server.state)
    return evaluate(parts.model, digits.test, parts.feed, 10).accuracy


for_algorithms = pytest.mark.parametrize(
    "algorithm", [SyncSGD(SGD(0.1)), FedAvg(SGD(0.1), sync_every=2)], ids=["sync-sgd", "fedavg"]
)


@for_algorithms
@every_rule
def test_updates_that_never_become_bytes_come_to_the_same(
    digits: Dataset, linear: str, text: str, algorithm: Any
) -> None:
    """As on an accelerator: the next reply may lie where this one lay, so a rule must not hold on to it."""
    base = Config(devices=7, batch=4, model=linear, steps=3 * algorithm.sync_every, algorithm=algorithm)
    ended = []
    for near in (False, True):
        parts = assemble(replace(base, eval_every=0, fused="off", aggregate=rule_of(text)), digits)
        work = replace(parts.work, near=near)
        engine, progress = Inline(parts.devices, parts.model, work, Memories()), Progress.start(parts)
        rows = [replace(_round(parts, engine, progress), seconds=0.0) for _ in range(2)]
        ended.append((rows, progress.server.state.clone()))
    assert ended[0][0] == ended[1][0] and same(ended[0][1], ended[1][1])


@for_algorithms
@pytest.mark.parametrize("text", ["median", "trimmed:0.3", "krum:2", "multi-krum:2"])
def test_a_run_with_faulty_devices_learns(digits: Dataset, linear: str, text: str, algorithm: Any) -> None:
    assert accuracy(digits, linear, text, -10.0, algorithm) > 0.85


@for_algorithms
def test_a_run_with_faulty_devices_and_the_mean_does_not(
    digits: Dataset, linear: str, algorithm: Any
) -> None:
    assert accuracy(digits, linear, "mean", -10.0, algorithm) < 0.2
    assert accuracy(digits, linear, "mean", -10.0, algorithm, buffers=False) < 0.4
    assert accuracy(digits, linear, "mean", 1.0, algorithm) > 0.9


@for_algorithms
def test_clipping_bounds_updates_and_not_buffers(digits: Dataset, linear: str, algorithm: Any) -> None:
    assert accuracy(digits, linear, "clip-median", -10.0, algorithm, buffers=False) > 0.8
    assert accuracy(digits, linear, "clip-median", -10.0, algorithm) < 0.2


@every_rule
def test_a_run_spills_into_its_own_folder(
    digits: Dataset, linear: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no room in RAM a run ends in the same bits, and leaves nothing beside its records."""
    config = Config(devices=7, batch=8, model=linear, steps=3, aggregate=rule_of(text))
    list(run(config, tmp_path / "ram", dataset=digits))
    monkeypatch.setattr(stack, "BUDGET", 0)
    list(run(config, tmp_path / "file", dataset=digits))
    ram, file = ((records.summary(tmp_path / name) or {})["model_digest"] for name in ("ram", "file"))
    assert ram == file
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("ram", "file")]
    assert names[0] == names[1]


def test_only_the_mean_is_fused(digits: Dataset) -> None:
    small = Config(width=4, steps=1)
    assert assemble(small, digits).config.fused == "on"
    for text in RULES[1:]:
        config = replace(small, aggregate=rule_of(text))
        assert assemble(config, digits).config.fused == "off"
        with pytest.raises(EdgewiseError, match=r"^fused: cannot be on: the aggregate looks at every device"):
            assemble(replace(config, fused="on"), digits)
        with pytest.raises(EdgewiseError, match=r"^norm: batch-sync .* but the aggregate looks at every"):
            assemble(replace(config, norm=BatchSync()), digits)
