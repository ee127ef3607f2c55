"""What a paper adds to federated averaging is a part; this is where parts can stand.

A part is a frozen dataclass with both of its halves: some of the methods below, whichever it needs. Parts of
different places go together without a new class.

    place      on the device                                  on the server
    gradient   the gradient, or what is done to it            -
    loss       the losses of a batch (`objective`)            -
    average    what is sent of the way that was gone          how the mean is read
    drift      what is added to a gradient, what is kept      what that needs to know
    server     -                                              which way the state goes

Only `gradient` has room for several parts; a part may stand at several places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from edgewise import local
from edgewise.accelerator import sent
from edgewise.algorithms.base import Combined, Memory, Own
from edgewise.errors import EdgewiseError
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout

GRADIENT, LOSS, AVERAGE, DRIFT, SERVER = PLACES = ("gradient", "loss", "average", "drift", "server")


@dataclass(frozen=True)
class Outset:
    """A device's round as it begins. `start`: the state's parameters (P,), which `model` holds too."""

    model: FlatModel
    start: Tensor
    sgd: SGD
    factor: float
    own: Own

    @property
    def guide(self) -> Tensor:
        return torch.zeros_like(self.start) if self.own.guide is None else self.own.guide

    def remembered(self, name: str) -> Tensor:
        """A vector (P,) of the device's memory, where the model is; zeros if it has none yet."""
        found = self.own.memory.get(name)
        return torch.zeros_like(self.start) if found is None else sent(found, self.start.device)

    def gradient(self, update: Tensor, steps: int) -> Tensor:
        """The mean gradient (P,) of `steps` steps that led to an update."""
        reach = self.sgd.reach(steps) * self.factor
        return self.sgd.gradient_behind(update, reach, self.model.layout)


@dataclass(frozen=True)
class Closing:
    """A round as it ends on the server. `vectors`: the algorithm's, to be updated in place."""

    vectors: Mapping[str, Tensor]
    sgd: SGD
    combined: Combined
    layout: Layout

    @property
    def reach(self) -> float:
        """The mean reach of the devices' steps (`SGD.reach`)."""
        return self._mean(self.sgd.reach)

    def gradient(self, direction: Tensor) -> Tensor:
        """The mean gradient (P,) behind the mean update, of steps that began at rest."""
        return self.sgd.gradient_behind(direction, self.reach * self.combined.factor, self.layout)

    def momentum(self, direction: Tensor) -> Tensor:
        """The mean of plain momentum (P,) over all devices' steps, behind the mean update."""
        return self.sgd.gradient_behind(direction, self._mean(float) * self.combined.factor, self.layout)

    def _mean(self, reach: Callable[[int], float]) -> float:
        steps = self.combined.steps
        return sum(weight * reach(k) for k, weight in steps.items()) / sum(steps.values())


class Part(Protocol):
    places: ClassVar[tuple[str, ...]]
    rests: ClassVar[bool]  # counts on local momentum that starts every round from rest


@runtime_checkable
class Gradient(Protocol):
    def gradient(self, inner: local.Gradient) -> local.Gradient:
        """A gradient in place of `inner`."""
        ...


@runtime_checkable
class Loss(Protocol):
    def objective(self, outset: Outset) -> local.Objective:
        """In place of cross-entropy, this round."""
        ...


@runtime_checkable
class Corrects(Protocol):
    places: ClassVar[tuple[str, ...]]

    def correction(self, outset: Outset) -> local.Correction: ...


@runtime_checkable
class Remembers(Protocol):
    def remember(self, outset: Outset, update: Tensor, steps: int) -> Memory:
        """What the device keeps once its update of so many steps is taken."""
        ...


@runtime_checkable
class Sends(Protocol):
    def sent(self, outset: Outset, update: Tensor, steps: int) -> Tensor:
        """What is sent of an update."""
        ...


@runtime_checkable
class Turns(Protocol):
    def start(self, params: Tensor) -> dict[str, Tensor]:
        """The vectors that the server keeps for it, as they are before the first round."""
        ...

    def turn(self, mean: Tensor, closing: Closing) -> Tensor:
        """The direction (P,) in which the server goes, from the mean update, which is left as it is."""
        ...


@runtime_checkable
class Guides(Protocol):
    guide: ClassVar[str]  # the name of the server's vector that devices are sent


@runtime_checkable
class Leads(Protocol):
    def ahead(self, params: Tensor, vectors: Mapping[str, Tensor], rate: float) -> Tensor:
        """Where devices start from, in place of the server's parameters; `rate`: the server's."""
        ...


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """EdgewiseError unless value is `low` at least, and below `high`."""
    if not (low <= value < high and math.isfinite(value)):
        below = "" if high == math.inf else f", below {high:g}"
        raise EdgewiseError(f"algorithm {name} is {value:g}; legal: {low:g} or more{below}")


def check_above(name: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    """EdgewiseError unless value is above `low`, and `high` at most."""
    if not (low < value <= high and math.isfinite(value)):
        most = "" if high == math.inf else f", at most {high:g}"
        raise EdgewiseError(f"algorithm {name} is {value:g}; legal: above {low:g}{most}")
