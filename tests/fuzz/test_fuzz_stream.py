"""A short turn of the stream's fuzzer, and proof that it finds what is broken; the rest: docs/wire.md."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from random import Random
from typing import Any

import fuzz_stream
import pytest
from fuzz_stream import Finding, run
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_ends import AgentEnd, CoordinatorEnd, Parts, plain
from stream_words import any_message

from edgewise.device import Memory
from edgewise.engines.fleet.journal import Journal
from edgewise.engines.fleet.keep import Keep
from edgewise.engines.fleet.messages import EVALUATE, TRAIN, down
from edgewise.engines.fleet.session import Session
from edgewise.wire import FrameError


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def coordinator(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoordinatorEnd]:
    end = CoordinatorEnd(parts, tmp_path_factory.mktemp("coordinator"))
    yield end
    end.close()


@pytest.fixture(scope="module")
def agent(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentEnd]:
    end = AgentEnd(parts, tmp_path_factory.mktemp("agent"))
    yield end
    end.close()


# ---- any messages, in any order ----


def words(way: str) -> st.SearchStrategy[list[bytes]]:
    """Bytes, and messages of any kind that say anything."""
    message = st.integers(0, 2**32).map(lambda seed: any_message(way, Random(seed)))
    return st.lists(st.binary(max_size=80) | message, max_size=12)


@settings(max_examples=40)
@given(words("up"), st.sampled_from((TRAIN, EVALUATE)), st.permutations(range(9)), st.randoms())
def test_a_session_answers_whatever_is_said_in_any_order(
    coordinator: CoordinatorEnd, other: list[bytes], purpose: int, order: list[int], rng: Random
) -> None:
    coordinator.round += 1
    good, _ = coordinator.words(Random(0))
    mixed = [*other, *(good[place] for place in order if place < len(good))]
    for conversation in ([*good, *other], mixed):
        coordinator.round += 1
        asyncio.run(coordinator.converse(conversation, purpose))


@settings(max_examples=20)
@given(words("down"), st.permutations(range(8)))
def test_an_agent_answers_whatever_is_said_in_any_order(
    agent: AgentEnd, other: list[bytes], order: list[int]
) -> None:
    good = agent.words(Random(0))
    mixed = [*other, *(good[place] for place in order if place < len(good))]
    for conversation in ([*good[:2], *other], mixed):
        asyncio.run(agent.converse(conversation))


def test_a_task_without_a_frame_is_a_failure_and_not_the_end_of_the_agent(agent: AgentEnd) -> None:
    duty = agent.duty(down(plan=agent.parts.plan).plan)
    for _ in range(2):  # with nothing in hand, and with a state
        with pytest.raises(FrameError, match="a task without a frame"):
            duty.train([], Memory())
        duty.train(agent.frames, Memory())


def test_a_farewell_is_printed_without_codes_for_the_terminal(agent: AgentEnd) -> None:
    refused = plain("farewell", {"kind": 3, "reason": "\x1b[2J\nno"})
    asyncio.run(agent.converse([refused]))  # which looks at the error


@pytest.mark.parametrize(("end", "count"), [("coordinator", 120), ("agent", 50)])
def test_many_conversations_are_answered_or_ended(end: str, count: int) -> None:
    tally = run(end, count, seed=3, measure=50)
    assert tally.played == count
    wanted = ("verdict", "task", "farewell", "counted") if end == "coordinator" else ("update", "moved on")
    for what in wanted:
        assert tally.counts[what], f"the fuzzer hardly reaches {what}"


# ---- the fuzzer finds what is broken ----


def careless(patch: pytest.MonkeyPatch) -> None:
    async def scores(self: Session, body: Any) -> None:
        assert body.right_each[5] >= 0

    patch.setattr(Session, "_scores", scores)


def not_journaled(patch: pytest.MonkeyPatch) -> None:
    def take(self: Journal, run: str, entry: Any, content: Any = None) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done

    patch.setattr(Journal, "take", take)


def moves_on_by_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Keep, "forget", Keep.commit)


def slow(patch: pytest.MonkeyPatch) -> None:
    async def beat(self: Session, body: Any) -> None:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass

    patch.setattr(fuzz_stream, "SECONDS", 0.25)
    patch.setattr(Session, "_beat", beat)


def without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fuzz_stream, "WAIT", 0.5)
    patch.setattr(Session, "_beat", lambda self, body: asyncio.sleep(1000))


BROKEN: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, type[BaseException], str]] = {
    careless: ("coordinator", IndexError, "out of range"),
    not_journaled: ("coordinator", Finding, "the journal and the round differ"),
    moves_on_by_itself: ("agent", Finding, "a memory moved on, and nobody said so"),
    slow: ("coordinator", Finding, "s and .* for one conversation"),
    without_end: ("coordinator", Finding, "no end in"),
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_what_is_broken_is_found(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    end, error, words = BROKEN[broken]
    broken(monkeypatch)
    with pytest.raises(error, match=words):
        run(end, 300, seed=4, measure=1000)
