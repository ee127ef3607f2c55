"""The interface of an algorithm: a device half (`learn`) and a server half (`start`, `step`) in one value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from edgewise.local import Batch, Objective, cross_entropy
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout, State


@dataclass(frozen=True)
class Server:
    """What the coordinator carries from round to round. Its tensors are updated in place by `step`."""

    state: State
    momentum: Tensor  # (P,), or empty where the algorithm keeps none


class Algorithm(Protocol):
    # An update is the gradient itself: many devices' batches can be one, and the server applies the rate.
    sends_gradients: ClassVar[bool]

    @property
    def sgd(self) -> SGD:
        """The optimizer of the steps, wherever they are taken."""
        ...

    @property
    def sync_every(self) -> int:
        """Local steps a round, K."""
        ...

    def start(self, state: State) -> Server: ...

    def without_momentum(self) -> tuple[Algorithm, float]:
        """The algorithm without the server's momentum, and that momentum: for who keeps it elsewhere."""
        ...

    def learn(
        self,
        model: FlatModel,
        batches: Iterable[Batch],
        factor: float,
        objective: Objective = cross_entropy,
    ) -> tuple[Tensor, float]:
        """Runs on a device, on a model that holds the round's state. The update (P,) and the mean loss."""
        ...

    def step(self, server: Server, mean: State, factor: float, layout: Layout) -> Server:
        """Runs on the coordinator. `mean`: the mean update and the mean of the devices' buffers."""
        ...
