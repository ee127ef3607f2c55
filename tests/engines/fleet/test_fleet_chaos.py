"""SIGKILL and SIGSTOP for everybody, from a seeded schedule."""

import random
import signal
import time
from pathlib import Path

import pytest
from fleet_processes import Scene, replayed, simulated

SECONDS = 40.0  # at most
CALM = 8  # rounds between two strokes, on average
AT_ONCE, SOON, LONGEST = 0.3, 0.2, 1.5  # strokes that no round is waited for; seconds; of a stop
SETTINGS = (*("--algorithm", "fedavg", "--sync-every", 2, "--codec", "topk:0.1", "--codec-down", "topk:0.1"),)
LIVELY = ("--beat", 0.3, "--checkpoint-seconds", 0.5)  # a stop may be longer than three beats
# By policy: rounds (of which more pass while somebody is away, where not everybody is needed), and options.
POLICIES = {
    "everybody": (400, ()),
    "a quorum": (900, ("--quorum", 0.5)),
    "the first to answer": (3000, ("--quorum", 0.5, "--spare", 0.5)),
}


def pause(scene: Scene, seconds: float) -> None:
    """Time goes by, and nobody stays dead."""
    end = time.monotonic() + seconds
    scene.tend(lambda: scene.coordinator.done or time.monotonic() > end)


def calm(scene: Scene, chance: random.Random) -> None:
    """The time until the next stroke: in rounds, so that it is as good on a slow machine, or very soon."""
    goal = 0 if chance.random() < AT_ONCE else scene.round() + chance.expovariate(1 / CALM)
    scene.tend(lambda: scene.coordinator.done or scene.round() >= goal)
    pause(scene, chance.uniform(0, SOON))


def strike(scene: Scene, chance: random.Random) -> dict[signal.Signals, int]:
    """Kill and stop, for a while; how often."""
    strokes = {signal.SIGKILL: 0, signal.SIGSTOP: 0}
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and not scene.coordinator.done:
        calm(scene, chance)
        unit, number = chance.choice(scene.units), chance.choice(list(strokes))
        if unit.process is None or unit.process.ended:
            continue
        unit.send(number)
        strokes[number] += 1
        if number == signal.SIGSTOP:
            pause(scene, chance.uniform(0, LONGEST))
            unit.send(signal.SIGCONT)
    return strokes


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_random_deaths_and_pauses_lose_nothing(policy: str, tmp_path: Path) -> None:
    rounds, options = POLICIES[policy]
    cohort = ("--cohort", 2) if "--spare" in options else ()
    scene = Scene(tmp_path, 3, (*SETTINGS, *cohort, "--steps", 2 * rounds), (*LIVELY, *options))
    scene.start()
    try:
        strokes = strike(scene, random.Random(list(POLICIES).index(policy)))
        scene.tend()
    finally:
        scene.end()
    assert min(strokes.values()) >= 5, strokes
    scene.check_journal(rounds, everybody=policy == "everybody")
    assert scene.digest == replayed(scene)
    if policy == "everybody":
        assert scene.digest == simulated(tmp_path, scene)
    assert scene.rows("SELECT sum(flags) FROM devices") == [(0,)]
    assert scene.rows("SELECT * FROM events WHERE kind IN ('failed', 'refused', 'forgot')") == []
    scene.check_memories(steps=2)
