"""How many steps: of a run, of a round; the schedule over them; which rounds are evaluated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgewise.config import Config
from edgewise.errors import EdgewiseError
from edgewise.schedules import Schedule, Warmup


def local_steps(config: Config, examples: int) -> int:
    """Steps that one device takes in the run, of `examples` that the devices hold together.

    An epoch is as many as show the cohort all of them once: a pass over each device's data where devices
    hold the same amount and all take part.
    """
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    steps = round(config.epochs * examples / (config.cohort_size * config.batch))
    if steps < 1:
        raise EdgewiseError(f"epochs: {config.epochs:g} epochs of {examples} examples are less than one step")
    return steps


def paced(config: Config, examples: int) -> Config:
    """With the steps a round that local epochs come to on average, where they are not known yet.

    `examples`: of all devices together.
    """
    algorithm: Any = config.algorithm
    if algorithm.sync_every:
        return config
    every = max(1, round(algorithm.local_epochs * examples / (config.devices * config.batch)))
    return replace(config, algorithm=replace(algorithm, sync_every=every))


def paced_alike(config: Config, examples: int) -> Config:
    """The same where all that devices hold is at hand: what is given has to be what follows from it."""
    algorithm: Any = config.algorithm
    if not getattr(algorithm, "local_epochs", 0):
        return config
    found = paced(replace(config, algorithm=replace(algorithm, sync_every=None)), examples)
    if algorithm.sync_every not in (None, found.algorithm.sync_every):
        raise EdgewiseError(
            f"sync_every: local_epochs {algorithm.local_epochs:g} are {found.algorithm.sync_every} steps a "
            f"round on average here, and not {algorithm.sync_every}; give one of the two"
        )
    return found


def evaluated(config: Config, number: int, rounds: int) -> bool:
    """Whether the state is evaluated after this round of so many."""
    return number == rounds or bool(config.eval_every and number % config.eval_every == 0)


def make_schedule(config: Config, steps: int, examples: int) -> Schedule:
    if not config.warmup_epochs:
        return config.schedule
    share = config.warmup_epochs * examples / (config.cohort_size * config.batch) / steps
    sgd = config.algorithm.sgd
    start = 0.1 if config.warmup_lr is None else config.warmup_lr / (sgd.lr * sgd.lr_scale)
    return Warmup(config.schedule, share, start)
