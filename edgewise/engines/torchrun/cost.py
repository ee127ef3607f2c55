"""Whether ranks are worth it, measured before the first round: a device's step alone, and all at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgewise.device import Task
from edgewise.engines.inline import Inline
from edgewise.memories import Memories

if TYPE_CHECKING:
    from edgewise.assemble import Parts

GAIN, LEAST = 0.9, 1.0  # of the time of one process; seconds that must be saved
STEPS = 2  # local steps of a try, at most
FACTOR = 1e-3  # of the learning rate: nothing is to diverge
TRIES, SECONDS = 3, 0.1  # at least so many, for at least so long


@dataclass(frozen=True)
class Cost:
    """`alone`, `together`: seconds for an example, with the other ranks at rest and at work. `exchange`: of a

    round. `heaviest`: examples a round of the rank that has most; `all`: of all ranks.
    """

    alone: float
    together: float
    exchange: float
    heaviest: float
    all: float

    def pays(self, rounds: int) -> bool:
        """Whether the ranks finish so many rounds sooner than one process, by enough to matter."""
        one = rounds * self.all * self.alone
        many = rounds * (self.heaviest * self.together + self.exchange)
        return many <= GAIN * one and one - many >= LEAST


def rehearsal(parts: Parts) -> Task:
    """What is asked of devices to see how long they take."""
    algorithm = parts.terms.algorithm
    server = algorithm.start(parts.model.read())
    steps = min(STEPS, algorithm.sync_every)
    return Task(1, steps, FACTOR, algorithm.offer(server), guide=algorithm.guide(server))


def rehearse(parts: Parts, task: Task, devices: Sequence[int]) -> float:
    """Seconds that an example takes on these devices: the best of a few tries. Nothing is left of them.

    0 where there are no devices.
    """
    if not devices:
        return 0.0
    before = parts.model.read()
    engine, best = parts.simulated(Memories()), float("inf")
    some = list(devices[:1] if isinstance(engine, Inline) else devices[: engine.together or None])
    with torch.random.fork_rng(devices=[]):
        tries, until = -1, time.monotonic() + SECONDS  # the first is to get warm
        while tries < TRIES or time.monotonic() < until:
            began = time.perf_counter()
            examples = sum(reply.examples for reply in engine.ask(task, some))
            if tries >= 0:
                best = min(best, (time.perf_counter() - began) / examples)
            tries += 1
    parts.model.write(before)
    return best
