"""A minute of SIGKILL and SIGSTOP for everybody, from a seeded schedule."""

import random
import signal
import time
from pathlib import Path

import pytest
from fleet_processes import Scene, simulated

SECONDS, CALM, LONGEST = 45.0, 0.5, 1.5  # of it; between two strokes, on average; that a process is stopped
ROUNDS = 500
LIVELY = ("--beat", 0.3, "--checkpoint-seconds", 0.5)  # a stop may be longer than three beats
SETTINGS = (
    *("--algorithm", "fedavg", "--sync-every", 2, "--steps", 2 * ROUNDS),
    *("--codec", "topk:0.1", "--codec-down", "topk:0.1"),
)


def pause(scene: Scene, seconds: float) -> None:
    """Time goes by, and nobody stays dead."""
    end = time.monotonic() + seconds
    scene.tend(lambda: scene.coordinator.done or time.monotonic() > end)


@pytest.mark.slow
def test_random_deaths_and_pauses_lose_nothing(tmp_path: Path) -> None:
    scene, chance = Scene(tmp_path, 3, SETTINGS, LIVELY), random.Random(1)
    strokes = {signal.SIGKILL: 0, signal.SIGSTOP: 0}
    scene.start()
    try:
        began = time.monotonic()
        while time.monotonic() < began + SECONDS and not scene.coordinator.done:
            pause(scene, chance.expovariate(1 / CALM))
            unit, number = chance.choice(scene.units), chance.choice(list(strokes))
            if unit.process is None or unit.process.ended:
                continue
            unit.send(number)
            strokes[number] += 1
            if number == signal.SIGSTOP:
                pause(scene, chance.uniform(0, LONGEST))
                unit.send(signal.SIGCONT)
        scene.tend()
    finally:
        scene.end()
    assert min(strokes.values()) >= 5, strokes
    scene.check_journal(ROUNDS)
    assert scene.digest == simulated(tmp_path, scene)
