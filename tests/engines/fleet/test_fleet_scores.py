"""Evaluations by devices, made one."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.engines.fleet import scores
from edgewise.engines.fleet.messages import up
from edgewise.engines.fleet.scores import combine
from edgewise.evaluate import Evaluation

CLASSES = 3


def answer(each: list[int], of: list[int], loss: float = 1.0, **other: Any) -> Any:
    """A device's `Scores`, as it comes off the wire: what it gets right of each class, of how many."""
    body = {"right": sum(each), "seen": sum(of), "loss": loss, "right_each": each, "seen_each": of}
    return up(scores={"round": 1, **body, **other}).scores


def test_all_examples_count_the_same_and_the_worst_device_shows() -> None:
    result = combine([answer([1, 2, 0], [1, 2, 1], 0.5), answer([0, 3, 0], [3, 3, 0], 2.0)], CLASSES)
    assert result.accuracy == 6 / 10
    assert result.loss == pytest.approx((0.5 * 4 + 2.0 * 6) / 10)
    assert result.per_class == (1 / 4, 5 / 5, 0 / 1)
    assert result.worst == 3 / 6


def test_devices_with_a_model_each_count_the_same() -> None:
    answers = [answer([1, 2, 0], [1, 2, 1], 0.5), answer([0, 3, 0], [3, 3, 0], 2.0)]
    result, shared = combine(answers, CLASSES, apart=True), combine(answers, CLASSES)
    assert result.accuracy == (3 / 4 + 3 / 6) / 2
    assert (result.worst, result.per_class) == (shared.worst, shared.per_class)


def test_a_class_that_nobody_has() -> None:
    assert combine([answer([1, 0, 2], [2, 0, 2])], CLASSES).per_class == (0.5, None, 1.0)


def test_one_device_that_does_not_tell_its_classes_hides_them_all() -> None:
    told, silent = answer([1, 1, 1], [2, 2, 2]), answer([], [], right=4, seen=4)
    result = combine([told, silent], CLASSES)
    assert result.per_class == (None,) * CLASSES
    assert (result.accuracy, result.worst) == (7 / 10, 0.5)


def test_nobody_says_anything() -> None:
    for answers in ([], [answer([], [], right=0, seen=0)]):
        result = combine(answers, CLASSES)
        assert (result.accuracy, result.per_class, result.worst) == (0.0, (None,) * CLASSES, None)
        assert math.isnan(result.loss)


NONSENSE = {
    "more right than there are": answer([], [], right=5, seen=4),
    "more right than there are in a class": answer([2, 0, 0], [1, 1, 1]),
    "other sums than the whole": answer([1, 1, 1], [2, 2, 2], seen=7),
    "other sums of what is right": answer([1, 1, 1], [2, 2, 2], right=4),
    "too few classes": answer([1, 1], [2, 2]),
    "too many classes": answer([1] * 4, [2] * 4),
    "classes of one kind": answer([1, 1, 1], [], right=3, seen=6),
    "no examples": answer([0, 0, 0], [0, 0, 0]),
    "more examples than there are": answer([], [], right=1, seen=1 << 41),
    "no loss": answer([1, 1, 1], [2, 2, 2], math.nan),
    "less than no loss": answer([1, 1, 1], [2, 2, 2], -1.0),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_left_out(what: str) -> None:
    good = answer([1, 2, 0], [1, 2, 1], 0.5)
    assert combine([good, NONSENSE[what]], CLASSES) == combine([good], CLASSES)


counts = st.lists(st.integers(0, 50), min_size=CLASSES, max_size=CLASSES)


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=6))
def test_it_is_the_evaluation_of_all_examples_together(pairs: list[tuple[list[int], list[int]]]) -> None:
    answers = [
        answer(right, [r + s for r, s in zip(right, wrong, strict=True)], 0.1 * n)
        for n, (right, wrong) in enumerate(pairs)
    ]
    result = combine(answers, CLASSES)
    whole = [one for one in answers if one.seen]
    if not whole:
        assert result.worst is None
        return
    assert result.accuracy == sum(one.right for one in whole) / sum(one.seen for one in whole)
    assert result.worst == min(one.right / one.seen for one in whole) <= result.accuracy
    for number, share in enumerate(result.per_class):
        seen = sum(one.seen_each[number] for one in whole)
        assert share == (sum(one.right_each[number] for one in whole) / seen if seen else None)
    assert 0 <= result.loss <= 0.1 * len(pairs)


@pytest.mark.parametrize("loss", [0.25, math.inf, math.nan])
def test_an_evaluation_survives_json(loss: float) -> None:
    result = Evaluation(0.5, loss, (None, 0.25, 1.0), 0.125)
    found = scores.read(json.loads(json.dumps(scores.row(result), allow_nan=False)))
    assert (found.accuracy, found.per_class, found.worst) == (0.5, (None, 0.25, 1.0), 0.125)
    assert found.loss == loss if math.isfinite(loss) else math.isnan(found.loss)


def test_any_object_with_the_fields_will_do() -> None:
    plain = SimpleNamespace(right=1, seen=2, loss=0.5, right_each=[], seen_each=[])
    assert combine([plain], CLASSES).accuracy == 0.5
