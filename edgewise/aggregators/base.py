"""The interface of an aggregator: how the coordinator combines a round's updates into one.

    gathering = aggregator.start(like, folder)
    gathering.add(state, weight)         for every update, in the cohort's order
    state = gathering.value()            once

A state here is what one device sent: its update (P,) and its buffers (B,).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from edgewise.vector import State


class Gathering(Protocol):
    """One round's updates, as they come in."""

    def add(self, state: State, weight: float) -> None:
        """Take in one device's update. `weight`: the examples that it trained on, above 0.

        What is kept of `state` is copied: the next update may lie where it lay.
        """
        ...

    def value(self) -> State:
        """What the round's updates come to, where the model is; ask once, after the last `add`.

        EdgewiseError if there were too few for the rule, or a file could not be read.
        """
        ...


class Aggregator(Protocol):
    """Frozen dataclasses: the fields are the settings, what changes during a round is the gathering."""

    # The value is the mean weighted by examples, so that updates may be averaged before they get here.
    linear: ClassVar[bool]

    def check(self, updates: int) -> None:
        """EdgewiseError unless the rule can combine so many updates."""
        ...

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        """Begin a round whose updates look `like` this and whose value will lie where it lies.

        A rule that needs all updates at once keeps them in RAM up to `stack.BUDGET` bytes and beyond that in
        a nameless file in `folder`, gone with the gathering however it ends; None: all stay in RAM.
        """
        ...
