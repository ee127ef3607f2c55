"""The mean of what is left of every coordinate when its largest and smallest values are cut.

Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, Yin et al. 2018,
https://arxiv.org/abs/1803.01498 (option II)

    k = floor(share * n)
    value[j] = mean of u_1[j], ..., u_n[j] without the k largest and the k smallest

With at most k faulty devices every coordinate lies between two honest ones. NaN counts as larger than any
number.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgewise.aggregators.base import Gathering
from edgewise.aggregators.stack import Matrix, Stack
from edgewise.errors import EdgewiseError
from edgewise.vector import State

SLACK = 1e-9  # 0.29 * 100 is 28.999999999999996 in binary, and means 29


@dataclass(frozen=True)
class TrimmedMean:
    """`share` of the values is cut at each end. Examples do not count. Buffers: the same trimmed mean.

    All updates are kept until the round's end.
    """

    share: float = 0.1
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 0.5:
            raise EdgewiseError(
                f"aggregate: trimmed cuts a share of {self.share:g} at each end; legal: above 0, below 0.5"
            )

    def cut(self, updates: int) -> int:
        """How many of so many values are cut at each end."""
        return min(math.floor(self.share * updates + SLACK), (updates - 1) // 2)

    def check(self, updates: int) -> None:
        if updates and not self.cut(updates):
            least = max(3, math.ceil((1 - SLACK) / self.share))
            larger = ", or a larger share" if updates >= 3 else ""
            raise EdgewiseError(
                f"aggregate: trimmed:{self.share:g} cuts none of {updates} updates; "
                f"it takes {least} or more{larger}"
            )

    def rest(self, rows: Matrix) -> Matrix:
        """The trimmed mean of every row (rows, n), which is sorted in place: (rows,)."""
        cut = self.cut(rows.shape[1])
        rows.sort(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):  # what is infinite stays so, quietly
            kept = rows[:, cut : rows.shape[1] - cut]
            return kept.mean(axis=1, dtype=np.float64).astype(rows.dtype)

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return _Gathering(self, Stack(like, folder))


class _Gathering:
    def __init__(self, rule: TrimmedMean, stack: Stack) -> None:
        self.rule, self.stack = rule, stack

    def add(self, state: State, weight: float) -> None:
        self.stack.add(state)

    def value(self) -> State:
        with closing(self.stack) as stack:
            self.rule.check(stack.count)
            return stack.by_column(self.rule.rest)
