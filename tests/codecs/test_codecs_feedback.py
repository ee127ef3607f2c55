"""Error feedback: what a payload loses comes with a later one, whatever the codec and the learning rate."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from specimens import DEFAULTS, LAYOUTS, LOSSY, bits, distance, vector, warmed
from torch import Tensor

from edgewise.codecs import DGC, Codec, Feedback, Memory, NotFinite, Raw, Sending, TopK, inner, parse
from edgewise.codecs.feedback import RESIDUAL
from edgewise.vector import Layout


def conserves(codec: Codec) -> bool:
    """Whether what is decoded adds up to what was given: fed, or with feedback of its own and no momentum."""
    own = inner(codec)
    return isinstance(codec, Feedback) or (isinstance(own, DGC) and own.momentum == 0)


NET = LAYOUTS["net"]
FED = [form for form in LOSSY if conserves(parse(form)) and ":zstd" not in form] + ["topk:0.01:zstd"]
RATES = {
    "constant": lambda number: 1.0,
    # A warm-up, a plateau, steps down, rounds that are applied at a rate of zero, and up again.
    "changing": lambda number: [(number + 1) / 10, 1.0, 0.1, 0.01 * (number < 35), 0.1][number // 10],
}


@cache
def updates() -> list[Tensor]:
    """The updates of fifty rounds: what all of them share, and noise with heavy tails."""
    count = NET.count
    noise = vector("heavy", count + 50).clamp(-5, 5)
    return [vector("steps", count) + noise[number : number + count] for number in range(50)]


@pytest.mark.parametrize("form", FED)
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
def test_nothing_is_lost_in_fifty_rounds(form: str, rate) -> None:  # type: ignore[no-untyped-def]
    codec = parse(form)
    memory: Memory = {}
    given, applied = (torch.zeros(NET.count, dtype=torch.float64) for _ in range(2))
    for number, update in enumerate(updates()):
        payload, memory = codec.encode(update, NET, memory, Sending(number, rate(number)))
        given += rate(number) * update.double()
        applied += rate(number) * codec.decode(payload, NET, torch.float32).double()
    assert distance(applied + memory[RESIDUAL].double(), given) <= 1e-5 * float(given.norm())
    assert memory[RESIDUAL].dtype == torch.float32


def grows(codec: Codec, rounds: int) -> float:
    """How much more is owed in the last third of some rounds than before."""
    memory: Memory = {}
    owed = []
    for number in range(rounds):
        _, memory = codec.encode(updates()[number % 50], NET, memory, Sending(number))
        owed.append(float(memory[RESIDUAL].norm()))
    return max(owed[rounds * 2 // 3 :]) / max(owed[: rounds * 2 // 3])


ROUNDS = {"dgc:0.001": 3000}  # there a value comes up every 1,000 rounds, and not every 100


@pytest.mark.parametrize("form", [form for form in DEFAULTS if form in LOSSY])
def test_the_residual_does_not_grow_for_ever(form: str) -> None:
    """Of updates that share a direction, a codec that sends nothing owes 3/2 of what it owed a third earlier,

    and one whose error grows from round to round far more.
    """
    assert grows(parse(form), ROUNDS.get(form, 300)) <= 1.25


# ---- the wrapper itself ----


def test_the_residual_by_hand() -> None:
    """Two of four values travel each round; at half the rate, twice the residual is added."""
    codec, layout = Feedback(TopK(0.5)), Layout.vector(4)
    payload, memory = codec.encode(torch.tensor([1.0, 2, 3, 4]), layout, {}, Sending())
    assert codec.decode(payload, layout, torch.float32).tolist() == [0, 0, 3, 4]
    assert memory[RESIDUAL].tolist() == [1, 2, 0, 0]
    payload, memory = codec.encode(torch.tensor([1.0, 1, 4, 1]), layout, memory, Sending(rate=0.5))
    assert codec.decode(payload, layout, torch.float32).tolist() == [0, 5, 4, 0]
    assert memory[RESIDUAL].tolist() == [1.5, 0, 0, 0.5]


def test_a_rate_of_zero_owes_nothing_and_is_owed_nothing() -> None:
    codec, layout = Feedback(TopK(0.5)), Layout.vector(4)
    _, memory = codec.encode(torch.tensor([1.0, 2, 3, 4]), layout, {}, Sending())
    payload, after = codec.encode(torch.tensor([0.0, 0, 1, 1]), layout, memory, Sending(rate=0.0))
    assert codec.decode(payload, layout, torch.float32).tolist() == [0, 0, 1, 1]
    assert after[RESIDUAL].tolist() == memory[RESIDUAL].tolist()
    _, first = codec.encode(torch.ones(4), layout, {}, Sending(rate=0.0))
    assert RESIDUAL not in first or not first[RESIDUAL].any()


def test_feedback_around_what_loses_nothing_owes_nothing() -> None:
    payload, memory = Feedback(Raw()).encode(vector("heavy", NET.count), NET, {}, Sending(rate=0.3))
    assert payload == bits(vector("heavy", NET.count))
    assert not memory[RESIDUAL].any()


@pytest.mark.parametrize("form", FED)
def test_the_residual_is_of_the_updates_precision(form: str) -> None:
    memory = warmed(parse(form), NET, torch.float64)
    assert memory[RESIDUAL].dtype == torch.float64


def test_a_codec_inside_knows_that_it_is_fed() -> None:
    seen = []

    class Listening(Raw):
        def encode(self, vector, layout, memory, sending):  # type: ignore[no-untyped-def]
            seen.append((sending, dict(memory)))
            return super().encode(vector, layout, memory, sending)

    layout, warm = Layout.vector(2), {"own": torch.ones(1), RESIDUAL: torch.ones(2)}
    Feedback(Listening()).encode(torch.zeros(2), layout, warm, Sending(7, 0.5))
    assert seen == [(Sending(7, 0.5, fed=True), {"own": warm["own"]})]


def test_a_residual_that_overflows_is_refused() -> None:
    layout, memory = Layout.vector(2), {RESIDUAL: torch.full((2,), 1e30)}
    with pytest.raises(NotFinite):
        Feedback(TopK(0.5)).encode(torch.ones(2), layout, memory, Sending(rate=1e-20))
