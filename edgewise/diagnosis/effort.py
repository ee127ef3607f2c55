"""How much looking a run can afford: `--diagnose`.

Looking at a local model means running it on held-out images. A training step costs about three forward passes
of its images, so what is looked at is counted against that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from edgewise.errors import EdgewiseError

MOST = 20  # images of a class that a light look takes; then rather another device
STEP = 3  # forward passes that a training step costs


@dataclass(frozen=True)
class Effort:
    """What a run does from one evaluation to the next: images trained on by all devices, images tested."""

    trained: int
    tested: int
    cohort: int
    classes: int


@dataclass(frozen=True)
class Looks:
    """At how many devices' local models an evaluated round looks, on how many images of each class.

    `drift`: whether the updates of every round are compared.
    """

    devices: int
    images: int
    drift: bool = True


class Diagnose(Protocol):
    def looks(self, effort: Effort) -> Looks: ...


@dataclass(frozen=True)
class Off:
    """Nothing."""

    def looks(self, effort: Effort) -> Looks:
        return Looks(0, 0, drift=False)


@dataclass(frozen=True)
class Light:
    """As much as takes `share` of the run's time, or not at all where that is less than an image a class."""

    share: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise EdgewiseError(f"diagnose: light:{self.share:g}; legal: a share of the run, 0 to 1")

    def looks(self, effort: Effort) -> Looks:
        # A look runs every class's images through the state before, after, and each device's own.
        passes = int(self.share * (STEP * effort.trained + effort.tested)) // effort.classes
        images = min(MOST, passes // 3)
        if not images:
            return Looks(0, 0)
        return Looks(min(effort.cohort, passes // images - 2), images)


@dataclass(frozen=True)
class Full:
    """Up to `images` of each class, on `devices` devices of the cohort; 0: on all of them."""

    images: int = 100
    devices: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.devices < 0:
            raise EdgewiseError(
                f"diagnose: full:{self.images}:{self.devices}; legal: 1 image of a class or more, "
                "0 devices (all) or more"
            )

    def looks(self, effort: Effort) -> Looks:
        return Looks(min(self.devices or effort.cohort, effort.cohort), self.images)


DIAGNOSES: dict[str, type[Any]] = {"off": Off, "light": Light, "full": Full}
