"""What a coordinator's operator decides about rounds, beside the run's own config."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgewise.errors import EdgewiseError


@dataclass(frozen=True)
class Policy:
    """`quorum`: the share of a cohort that a round needs; 1 waits for all of it, as long as it takes.

    Below 1 a round also ends without those who take much longer than devices usually do. `spare`: how many
    more than the cohort are asked, as a share of it; the first to answer make up the round. `beat`: seconds
    between signs of life. `labels`: ask devices how many examples of each class they hold.
    """

    quorum: float = 1.0
    spare: float = 0.0
    beat: float = 10.0
    labels: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("quorum", 0.0, 1.0), ("spare", 0.0, 10.0), ("beat", 0.05, 3600.0)):
            value = getattr(self, name)
            if not low <= value <= high or (name == "quorum" and value == 0):
                raise EdgewiseError(f"--{name}: {value:g} is out of range; legal: above {low:g} to {high:g}")

    @property
    def patient(self) -> bool:
        """Whether a round is made up of exactly the devices that its ranking names."""
        return self.quorum == 1 and self.spare == 0

    def needed(self, size: int) -> int:
        """Answers without which a round of `size` devices does not count."""
        return max(1, math.ceil(self.quorum * size - 1e-9))

    def choose(self, ranking: Sequence[int], present: Collection[int], size: int) -> list[int] | None:
        """Whom to ask, in order; None while too few of them are there."""
        size = min(size, len(ranking))
        if self.patient:
            return sorted(ranking[:size])
        there = [device for device in ranking if device in present]
        if len(there) < self.needed(size):
            return None
        return sorted(there[: size + math.ceil(self.spare * size)])
