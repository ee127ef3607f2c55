"""Krum and multi-Krum: the updates that lie closest to most others.

Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, Blanchard et al. 2017,
https://arxiv.org/abs/1703.02757

    score(i) = sum of the n - F - 2 smallest |u_i - u_j|^2 over j != i
    Krum:         the update with the smallest score
    multi-Krum:   the mean of the M updates with the smallest scores

F is how many faulty devices are tolerated; n >= 2 F + 3. Equal scores go by the cohort's order.

The squared distances are |u_i|^2 + |u_j|^2 - 2 u_i u_j, from one Gram matrix in float64: exact to about
1e-16 of the updates' squared norms. A distance that is not finite counts as infinitely far.

Distances do not look at buffers, which are values and no differences, in units of their own: a device that is
chosen for its update could send anything as its running statistics. So these get the coordinate-wise median
of all devices, which the chosen cannot move out of the honest range.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgewise.aggregators.base import Gathering
from edgewise.aggregators.median import median
from edgewise.aggregators.stack import Stack
from edgewise.errors import EdgewiseError
from edgewise.vector import Mean, State

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Krum:
    """The one update closest to its neighbours, with `faulty` (F) devices tolerated.

    Examples do not count. Buffers: the median of all. All updates are kept until the round's end; time and
    memory for all pairs of devices.
    """

    faulty: int
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_faulty("krum", self.faulty)

    def check(self, updates: int) -> None:
        _check_count("krum", self.faulty, updates)

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return _Gathering(self, Stack(like, folder))


@dataclass(frozen=True)
class MultiKrum:
    """The mean of the `chosen` (M) updates with the smallest scores; 0: n - F - 2, as many as a score counts.

    Otherwise as Krum, which it is with M = 1.
    """

    faulty: int
    chosen: int = 0
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_faulty("multi-krum", self.faulty)
        if self.chosen < 0:
            raise EdgewiseError(
                f"aggregate: multi-krum averages {self.chosen} updates; legal: 1 or more, or 0 for n - F - 2"
            )

    def check(self, updates: int) -> None:
        _check_count("multi-krum", self.faulty, updates)
        if self.chosen > updates - self.faulty:
            raise EdgewiseError(
                f"aggregate: multi-krum averages {self.chosen} updates of which none may be faulty; "
                f"with {self.faulty} faulty of {updates} at most {updates - self.faulty} are left"
            )

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return _Gathering(self, Stack(like, folder))


class _Gathering:
    def __init__(self, rule: Krum | MultiKrum, stack: Stack) -> None:
        self.rule, self.stack = rule, stack

    def add(self, state: State, weight: float) -> None:
        self.stack.add(state)

    def value(self) -> State:
        with closing(self.stack) as stack:
            self.rule.check(stack.count)
            return State(self._chosen(stack), stack.by_column(median, start=stack.params).buffers)

    def _chosen(self, stack: Stack) -> Tensor:
        """The mean of the updates with the smallest scores (P,)."""
        rule, no_buffers = self.rule, stack.like.buffers[:0]
        neighbours = stack.count - rule.faulty - 2
        chosen = 1 if isinstance(rule, Krum) else rule.chosen or neighbours
        order = np.argsort(scores(_distances(stack), neighbours), kind="stable")
        mean = Mean(State(stack.like.params, no_buffers))
        for index in np.sort(order[:chosen]):
            mean.add(State(stack.row(int(index)).params, no_buffers), 1.0)
        return mean.value().params


def scores(distances: Floats, neighbours: int) -> Floats:
    """The sum of every row's smallest so many of the squared distances (n, n), its own left out: (n,)."""
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    return others[:, :neighbours].sum(axis=1)


def _distances(stack: Stack) -> Floats:
    """The squared distances between all updates (n, n)."""
    gram = np.zeros((stack.count, stack.count))
    with np.errstate(invalid="ignore", over="ignore"):  # far beyond all others is all we need to know
        for _, block in stack.blocks(0, stack.params):
            wide = block.astype(np.float64)
            gram += wide @ wide.T
        squares = gram.diagonal()
        found = squares[:, None] + squares[None, :] - 2 * gram
    return np.where(np.isfinite(found), np.maximum(found, 0), np.inf)


def _check_faulty(name: str, faulty: int) -> None:
    if faulty < 0:
        raise EdgewiseError(f"aggregate: {name} with {faulty} faulty devices; legal: 0 or more")


def _check_count(name: str, faulty: int, updates: int) -> None:
    least = 2 * faulty + 3
    if updates < least:
        raise EdgewiseError(
            f"aggregate: {name} with {faulty} faulty devices takes {least} updates or more (2 F + 3), "
            f"and there are {updates}"
        )
