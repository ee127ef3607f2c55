"""The interface of an algorithm: a device half (`learn`) and a server half (`start`, `step`) in one value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from edgewise.local import Batch
from edgewise.vector import FlatModel, Layout, State


@dataclass(frozen=True)
class Server:
    """What the coordinator carries from round to round. Its tensors are updated in place by `step`."""

    state: State
    momentum: Tensor  # (P,), or empty where the algorithm keeps none


class Algorithm(Protocol):
    sync_every: int  # local steps a round, K
    fusable: ClassVar[bool]  # an update is the gradient itself, so that many devices' batches can be one

    def start(self, state: State) -> Server: ...

    def learn(self, model: FlatModel, batches: Iterable[Batch], factor: float) -> tuple[Tensor, float]:
        """Runs on a device, on a model that holds the round's state. The update (P,) and the mean loss."""
        ...

    def step(self, server: Server, mean: State, factor: float, layout: Layout) -> Server:
        """Runs on the coordinator. `mean.params` is the mean update, `mean.buffers` the devices' mean buffers."""
        ...
