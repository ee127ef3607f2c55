"""How the learning rate moves: a factor of the peak rate. State goes in and comes out as a small dict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from edgewise.errors import EdgewiseError

Note = dict[str, Any]


class Schedule(Protocol):
    """`factor` is asked before every round; `observe` hears every evaluation and returns the next note."""

    def factor(self, progress: float, note: Note) -> float: ...

    def observe(self, note: Note, accuracy: float) -> Note: ...


@dataclass(frozen=True)
class Constant:
    """Always the peak."""

    def factor(self, progress: float, note: Note) -> float:
        return 1.0

    def observe(self, note: Note, accuracy: float) -> Note:
        return note


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the peak down to zero at the end. Loshchilov & Hutter 2017, arXiv 1608.03983."""

    def factor(self, progress: float, note: Note) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def observe(self, note: Note, accuracy: float) -> Note:
        return note


@dataclass(frozen=True)
class Plateau:
    """Multiply by `drop` when accuracy has not risen by `threshold` for more than `patience` evaluations."""

    drop: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    START: ClassVar[Note] = {"scale": 1.0, "best": 0.0, "waited": 0}

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1:
            raise EdgewiseError(f"schedule: drop is {self.drop:g}; legal: above 0 and below 1")
        if self.patience < 0:
            raise EdgewiseError(f"schedule: patience is {self.patience}; legal: 0 or more evaluations")

    def factor(self, progress: float, note: Note) -> float:
        return float(note.get("scale", 1.0))

    def observe(self, note: Note, accuracy: float) -> Note:
        note = {**self.START, **note}
        if accuracy > note["best"] + self.threshold:
            return {**note, "best": accuracy, "waited": 0}
        if note["waited"] < self.patience:
            return {**note, "waited": note["waited"] + 1}
        return {**note, "scale": note["scale"] * self.drop, "waited": 0}


@dataclass(frozen=True)
class Warmup:
    """A straight line from `start` (a factor of the peak) to 1 over `share` of the run, then `then`.

    Goyal et al. 2017, arXiv 1706.02677.
    """

    then: Schedule
    share: float
    start: float = 0.1

    def factor(self, progress: float, note: Note) -> float:
        if progress < self.share:
            return self.start + (1 - self.start) * progress / self.share
        return self.then.factor((progress - self.share) / (1 - self.share) if self.share < 1 else 1.0, note)

    def observe(self, note: Note, accuracy: float) -> Note:
        return self.then.observe(note, accuracy)


SCHEDULES: dict[str, type[Schedule]] = {"constant": Constant, "plateau": Plateau, "cosine": Cosine}
