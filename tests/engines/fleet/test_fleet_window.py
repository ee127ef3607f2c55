"""A window in every order of its events, and how long it stays open: pace, policy."""

from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.cohorts import ranking
from edgewise.config import Config
from edgewise.engines import first
from edgewise.engines.fleet.pace import DEVIATIONS, LEAST, Pace
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.window import Window
from edgewise.errors import EdgewiseError

ASKED = (2, 5, 7)


def nothing(device: int, held: int) -> Any:
    return {}, []


def window(needed: int = 3, wanted: int = 3, asked: Sequence[int] = ASKED) -> Window:
    return Window(4, asked, needed, wanted, nothing)


# ---- every order ----


DEEDS: dict[str, Callable[[Window, int], None]] = {
    "take": lambda window, device: window.take(device, f"answer {device}"),
    "fail": lambda window, device: window.fail(device, f"reason {device}"),
    "nothing": lambda window, device: None,
}
ORDERS = [
    tuple(zip(order, deeds, strict=True))
    for order in permutations(ASKED)
    for deeds in [(a, b, c) for a in DEEDS for b in DEEDS for c in DEEDS]
]


@pytest.mark.parametrize(("needed", "wanted"), [(3, 3), (2, 3), (1, 3), (2, 2), (1, 1)])
def test_every_order_of_answers_failures_and_the_close(needed: int, wanted: int) -> None:
    for order in ORDERS:
        open = window(needed, wanted)
        taken, failed = set(), set()
        for device, deed in order:
            assert open.waits_for(device)
            DEEDS[deed](open, device)
            taken |= {device} if deed == "take" else set()
            failed |= {device} if deed == "fail" else set()
            assert open.waits_for(device) == (deed == "nothing")
            assert set(open.missing()) == set(ASKED) - taken - failed
            assert open.valid == (len(taken) >= needed)
            assert open.enough == (len(taken) >= wanted or taken | failed == set(ASKED))
        open.close()
        assert open.closed and open.missing() == [] and not any(map(open.waits_for, ASKED))
        answers = {device: answer.result(0) for device, answer in open.answers.items()}
        assert answers == {d: f"answer {d}" if d in taken else None for d in ASKED}
        if len(taken) >= needed:
            assert open.outcome.result(0) is None
        else:
            assert isinstance(error := open.outcome.exception(0), EdgewiseError)
            assert f"round 4: {len(taken)} usable answers from 3 devices, where {needed} are needed" in str(
                error
            )
            assert all(f"device {device}: reason {device}" in str(error) for device in failed)


def test_nobody_else_is_waited_for() -> None:
    assert not window().waits_for(3)


def test_what_had_come_before_the_restart() -> None:
    again = window()
    again.resume({2: "a", 7: "b"})
    assert again.missing() == [5] and again.answers[2].result(0) == "a" and not again.enough
    again.take(5, "c")
    assert again.enough


def test_a_device_that_answered_does_not_fail_afterwards() -> None:
    open = window()
    open.take(2, "answer")
    open.fail(2, "it was revoked")
    assert open.answers[2].result(0) == "answer" and 2 not in open.failed
    open.fail(5, "reason"), open.take(7, "answer")
    assert open.enough and len(open.taken) + len(open.failed) == 3


def test_an_answer_on_its_way_into_the_journal_is_not_overtaken_by_a_failure() -> None:
    """Else the journal would hold an update that the round went on without."""
    open = window()
    open.doubt.add(2)
    open.fail(2, "it was revoked")
    assert open.waits_for(2) and open.failed == {}
    open.doubt.discard(2)
    open.take(2, "answer")
    assert open.answers[2].result(0) == "answer"


def test_an_answer_is_given_once() -> None:
    open = window()
    open.take(2, "answer")
    with pytest.raises(InvalidStateError):
        open.take(2, "another")


def test_abandoned() -> None:
    open, error = window(), EdgewiseError("the disk is full")
    open.take(2, "answer")
    open.abandon(error)
    assert open.closed and open.outcome.exception(0) is error
    assert [answer.result(0) for answer in open.answers.values()] == ["answer", None, None]


# ---- policy ----


quorums = st.floats(0.01, 1.0)
sizes = st.integers(1, 200)


@given(quorums, sizes)
def test_needed(quorum: float, size: int) -> None:
    needed = Policy(quorum).needed(size)
    assert 1 <= needed <= size and needed >= quorum * size - 1e-6 and needed - 1 < quorum * size


def test_needed_is_not_moved_by_rounding() -> None:
    assert Policy(0.7).needed(10) == 7 and Policy(0.1 + 0.2).needed(10) == 3
    assert Policy(1.0).needed(7) == 7 and Policy(0.01).needed(7) == 1


@given(st.integers(1, 40), st.data())
def test_when_all_are_there_the_cohort_is_that_of_the_inline_loop(devices: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, devices))
    order = ranking(Config(devices=devices, cohort=float(size)), data.draw(st.integers(1, 9)))
    there = data.draw(st.sets(st.integers(0, devices - 1)))
    assert Policy().choose(order, there, size) == list(first(order, size))  # whoever is there
    hasty = Policy(quorum=data.draw(quorums))
    assert hasty.choose(order, range(devices), size) == list(first(order, size))


@given(
    st.permutations(range(12)), st.sets(st.integers(0, 15)), quorums, st.floats(0.01, 3), st.integers(1, 12)
)
def test_the_first_of_the_ranking_that_are_there_are_asked(
    order: list[int], there: set[int], quorum: float, spare: float, size: int
) -> None:
    policy = Policy(quorum, spare)
    chosen = policy.choose(order, there, size)
    able = [device for device in order if device in there]
    if len(able) < policy.needed(size):
        assert chosen is None
        return
    assert chosen is not None and chosen == sorted(chosen)
    assert set(chosen) == set(able[: len(chosen)])
    assert len(chosen) == min(len(able), size + -int(-spare * size // 1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("quorum", value) for value in (0.0, -0.1, 1.01, float("nan"))),
        *(("spare", value) for value in (-0.1, 11.0, float("nan"))),
        *(("beat", value) for value in (0.0, 4000.0, float("inf"))),
    ],
)
def test_a_policy_that_makes_no_sense(setting: str, value: float) -> None:
    with pytest.raises(EdgewiseError, match=rf"^--{setting}: {value:g} is out of range"):
        Policy(**{setting: value})


# ---- pace ----


def test_nothing_is_known_at_first() -> None:
    assert Pace().allowance is None


def test_the_first_time_counts_for_all() -> None:
    pace = Pace()
    pace.note(2.0)
    assert pace.allowance == 2.0 + DEVIATIONS * 1.0


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=50))
def test_the_allowance_stays_within_what_was_seen(times: list[float]) -> None:
    pace = Pace()
    for seconds in times:
        pace.note(seconds)
    assert pace.mean is not None and pace.allowance is not None
    assert min(times) - 1e-6 <= pace.mean <= max(times) + 1e-6
    assert LEAST <= pace.allowance <= max(LEAST, max(times) * (1 + DEVIATIONS) + 1e-6)


def test_it_learns_from_steady_devices_and_from_slower_ones() -> None:
    pace = Pace()
    for _ in range(100):
        pace.note(1.0)
    assert pace.allowance == pytest.approx(1.0, abs=0.01)
    for _ in range(100):
        pace.note(3.0)
    assert pace.allowance == pytest.approx(3.0, abs=0.01)
    pace.note(30.0)  # one that was late makes the next allowance longer
    assert pace.allowance > 30.0
    for _ in range(1000):
        pace.note(0.0)
    assert pace.allowance == LEAST
