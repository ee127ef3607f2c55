"""The median of the updates, coordinate by coordinate.

Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, Yin et al. 2018,
https://arxiv.org/abs/1803.01498 (option I)

    value[j] = median of u_1[j], ..., u_n[j]          the mean of the middle two where n is even

As long as fewer than half of the devices are faulty, every coordinate lies between two honest ones,
whatever the others send. NaN counts as larger than any number.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgewise.aggregators.base import Gathering
from edgewise.aggregators.stack import Matrix, Stack
from edgewise.vector import State


@dataclass(frozen=True)
class Median:
    """Examples do not count. Buffers: the same median. All updates are kept until the round's end."""

    linear: ClassVar[bool] = False

    def check(self, updates: int) -> None:
        """Any number has a median, though that of one or two is their mean."""

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return _Gathering(Stack(like, folder))


class _Gathering:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def add(self, state: State, weight: float) -> None:
        self.stack.add(state)

    def value(self) -> State:
        with closing(self.stack) as stack:
            return stack.by_column(median)


def median(rows: Matrix) -> Matrix:
    """The median of every row (rows, n), which is sorted in place: (rows,)."""
    rows.sort(axis=1)
    middle = rows.shape[1] // 2
    if rows.shape[1] % 2:
        return rows[:, middle]
    # In float64, where no two float32 overflow. Two infinities of different sign come to NaN, quietly.
    with np.errstate(invalid="ignore", over="ignore"):
        return rows[:, middle - 1 : middle + 1].mean(axis=1, dtype=np.float64).astype(rows.dtype)
