"""The mean of the updates, weighted by the examples that each device trained on.

Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al. 2017,
https://arxiv.org/abs/1602.05629

One device that sends anything it likes moves the mean anywhere it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgewise.aggregators.base import Gathering
from edgewise.vector import Mean, State


@dataclass(frozen=True)
class WeightedMean:
    """Buffers: the same mean. Memory: one vector."""

    linear: ClassVar[bool] = True

    def check(self, updates: int) -> None:
        """Any number can be averaged."""

    def start(self, like: State, folder: Path | None = None) -> Gathering:
        return Mean(like)
