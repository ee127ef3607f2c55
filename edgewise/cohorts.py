"""Who is asked in a round: a function of the seed and the round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from edgewise import randomness
from edgewise.config import Config


def ranking(config: Config, round: int) -> Sequence[int]:
    """All devices in the order in which they are asked, which is addressed by the round.

    In their own order where all are asked.
    """
    if config.cohort_size == config.devices:
        return range(config.devices)
    generator = randomness.generator(config.seed, "cohort", 0, round)
    return Ranking(torch.randperm(config.devices, generator=generator))


def cohort(config: Config, round: int) -> Sequence[int]:
    """The devices of a round, in order: all of them, or the first of its ranking."""
    return first(ranking(config, round), config.cohort_size)


def first(ranking: Sequence[int], size: int) -> Sequence[int]:
    """The first `size` devices of a ranking, in the devices' order."""
    return ranking if size == len(ranking) and isinstance(ranking, range) else sorted(ranking[:size])


class Ranking(Sequence[int]):
    """The numbers of a tensor (N,), which become Python's as they are asked for: few of very many."""

    def __init__(self, order: Tensor) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order.tolist())

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> list[int]: ...

    def __getitem__(self, place: int | slice) -> int | list[int]:
        found: int | list[int] = self._order[place].tolist()
        return found
