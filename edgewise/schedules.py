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
class Step:
    """Multiply by `drop` at each of the shares of the run in `at`, which are joined by commas.

    The shares are of what follows a warm-up. The default is that of wide residual networks on CIFAR-10
    (after 60, 120 and 160 of 200 epochs): Zagoruyko & Komodakis 2016, arXiv 1605.07146.
    """

    drop: float = 0.2
    at: str = "0.3,0.6,0.8"

    def __post_init__(self) -> None:
        _check_drop(self.drop)
        try:
            shares = self.shares
        except ValueError:
            shares = ()
        if not shares or list(shares) != sorted(set(shares)) or not (shares[0] > 0 and shares[-1] < 1):
            raise EdgewiseError(
                f"schedule: step at {self.at!r}; legal: rising shares of the run between 0 and 1, "
                "such as 0.5,0.75"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(float(word) for word in self.at.split(","))

    def factor(self, progress: float, note: Note) -> float:
        progress += 1e-9  # what a warm-up has been taken off may lie a bit below the share it is
        return self.drop ** sum(progress >= share for share in self.shares)

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
        _check_drop(self.drop)
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


def _check_drop(drop: float) -> None:
    if not 0 < drop < 1:
        raise EdgewiseError(f"schedule: drop is {drop:g}; legal: above 0 and below 1")


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "plateau": Plateau,
    "cosine": Cosine,
    "step": Step,
}
