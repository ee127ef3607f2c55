"""Schedules: ends, lines and plateaus, and notes that survive a trip through a checkpoint's JSON."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from edgewise.errors import EdgewiseError
from edgewise.schedules import SCHEDULES, Constant, Cosine, Note, Plateau, Schedule, Step, Warmup

EVERY = [*(kind() for kind in SCHEDULES.values()), Warmup(Cosine(), 0.2), Warmup(Plateau(patience=1), 0.2)]
every_schedule = pytest.mark.parametrize("schedule", EVERY, ids=repr)


def accuracies(count: int) -> list[float]:
    """Noise that rises and settles, so that a plateau comes and goes."""
    noise = torch.rand(count, generator=torch.Generator().manual_seed(3)).tolist()
    return [0.9 - 0.8 * 0.9**step + 0.02 * wobble for step, wobble in enumerate(noise)]


@every_schedule
def test_factors_are_shares_of_the_peak(schedule: Schedule) -> None:
    for step in range(101):
        assert 0 <= schedule.factor(step / 100, {}) <= 1
    assert max(schedule.factor(step / 100, {}) for step in range(101)) == 1


@every_schedule
def test_a_note_survives_json_and_is_not_changed_in_place(schedule: Schedule) -> None:
    straight: Note = {}
    stored: Note = {}
    for step, accuracy in enumerate(accuracies(60)):
        before = copy.deepcopy(straight)
        after = schedule.observe(straight, accuracy)
        assert straight == before
        straight, stored = after, schedule.observe(json.loads(json.dumps(stored)), accuracy)
        assert stored == straight
        assert schedule.factor(step / 60, stored) == schedule.factor(step / 60, straight)


def test_constant_stays() -> None:
    assert [Constant().factor(progress, {}) for progress in (0, 0.3, 1)] == [1, 1, 1]


def test_cosine_goes_from_the_peak_to_zero() -> None:
    progress = (0, 1 / 3, 0.5, 2 / 3, 1)
    found = [Cosine().factor(p, {}) for p in progress]
    assert found == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-15)
    assert Cosine().factor(1.2, {}) == Cosine().factor(1, {})


def test_steps_are_taken_at_shares_of_the_run() -> None:
    schedule = Step(0.1, "0.5,0.75")
    assert [schedule.factor(p, {}) for p in (0, 0.499, 0.5, 0.74, 0.75, 1)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    wide = [Step().factor(epoch / 200, {}) for epoch in (59, 60, 119, 120, 159, 160)]
    assert wide == pytest.approx([1, 0.2, 0.2, 0.04, 0.04, 0.008])
    assert Warmup(schedule, 0.2).factor(0.6, {}) == pytest.approx(0.1)  # half of what is left


@pytest.mark.parametrize("at", ["", "x", "0.5,", "0", "1", "0.5,0.5", "0.75,0.5", "nan", "0.5,nan"])
def test_steps_at_no_rising_shares_are_refused(at: str) -> None:
    with pytest.raises(EdgewiseError, match=r"^schedule: step at .*legal: rising shares of the run"):
        Step(at=at)
    with pytest.raises(EdgewiseError, match=r"^schedule: drop is 1; legal"):
        Step(1.0)


def test_plateau_drops_after_patience_by_hand() -> None:
    schedule, note, factors = Plateau(drop=0.5, patience=2), Note(), []
    #                 best  =     =    drop   =     =    drop  best   =
    for accuracy in (0.5, 0.5, 0.4, 0.50005, 0.5, 0.5, 0.5, 0.6, 0.6):
        note = schedule.observe(note, accuracy)
        factors.append(schedule.factor(0.9, note))
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert schedule.factor(0.9, {}) == 1


@pytest.mark.parametrize("patience", [0, 1, 4])
def test_plateau_is_that_of_torch(patience: int) -> None:
    schedule, note = Plateau(drop=0.3, patience=patience, threshold=0.01), Note()
    sgd = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        sgd, mode="max", factor=0.3, patience=patience, threshold=0.01, threshold_mode="abs", eps=0
    )
    factors = set()
    for accuracy in accuracies(60):
        note = schedule.observe(note, accuracy)
        reference.step(accuracy)
        factors.add(schedule.factor(0, note))
        assert schedule.factor(0, note) == pytest.approx(sgd.param_groups[0]["lr"])
    assert len(factors) > 3


def test_warmup_is_a_straight_line_and_then_the_whole_of_the_next() -> None:
    warm = Warmup(Cosine(), share=0.2, start=0.1)
    assert [warm.factor(p, {}) for p in (0, 0.05, 0.1, 0.15)] == pytest.approx([0.1, 0.325, 0.55, 0.775])
    assert warm.factor(math.nextafter(0.2, 0), {}) == pytest.approx(1) and warm.factor(0.2, {}) == 1
    assert [warm.factor(p, {}) for p in (0.6, 1)] == pytest.approx([0.5, 0], abs=1e-15)


def test_a_warmup_as_long_as_the_run_ends_at_the_peak_never_passing_it() -> None:
    assert Warmup(Constant(), share=1).factor(1, {}) == 1
    assert Warmup(Constant(), share=2, start=0).factor(0.5, {}) == 0.25


def test_warmup_passes_evaluations_on() -> None:
    plain, warm = Plateau(patience=1), Warmup(Plateau(patience=1), 0.1)
    note = warm.observe(warm.observe({}, 0.3), 0.2)
    assert note == plain.observe(plain.observe({}, 0.3), 0.2) and note["waited"] == 1
    dropped = warm.observe(note, 0.2)
    assert warm.factor(0.5, dropped) == pytest.approx(0.1)
    assert warm.factor(0.05, dropped) == pytest.approx(0.55)  # the line is the line


@pytest.mark.parametrize("bad", [{"drop": 0.0}, {"drop": 1.0}, {"drop": float("nan")}, {"patience": -1}])
def test_a_plateau_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(EdgewiseError, match=f"schedule: {next(iter(bad))} is"):
        Plateau(**bad)
