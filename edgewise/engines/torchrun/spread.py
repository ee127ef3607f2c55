"""Which rank has which device: loads as even as can be, the same at every start."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def spread(loads: Sequence[int], ranks: int) -> list[int]:
    """The rank of each device. `loads`: examples that each trains on in a round.

    The heaviest first, each to the rank that has least (Graham 1969, https://doi.org/10.1137/0117039: at most
    a third above the best); what is equal goes round in the devices' order.
    """
    owners = [0] * len(loads)
    heap = [(0, 0, rank) for rank in range(ranks)]  # load, devices, rank
    for device in sorted(range(len(loads)), key=lambda device: -loads[device]):
        load, count, rank = heap[0]
        owners[device] = rank
        heapq.heapreplace(heap, (load + loads[device], count + 1, rank))
    return owners
