"""The interface of an algorithm: a device half (`learn`) and a server half (`start`, `step`) in one value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from edgewise.local import Batch, Objective, cross_entropy
from edgewise.optimizers import SGD
from edgewise.vector import FlatModel, Layout, State

Memory = Mapping[str, Tensor]  # what an algorithm remembers on a device, by name; {} at the start


@dataclass(frozen=True)
class Server:
    """What the coordinator carries from round to round. Its tensors are updated in place by `step`.

    `vectors`: the algorithm's own, by name, each (P,). All are there from `start`.
    """

    state: State
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Own:
    """What a device has for a round beside its batches.

    `memory`: what it remembered when its last reply was taken. `counts`: its examples of each class, as far
    as it has any, (at most the number of classes,); None where examples have targets. `guide` (P,): what the
    coordinator sent beside the state; None where it sends nothing.
    """

    memory: Memory = field(default_factory=dict)
    counts: Tensor | None = None
    guide: Tensor | None = None


NOTHING = Own()


class Learned(NamedTuple):
    """The update (P,), the mean loss, and the memory for the next round, in tensors of its own."""

    update: Tensor
    loss: float
    memory: Memory


@dataclass(frozen=True)
class Combined:
    """What a round came to. `mean`: the combined update and the mean of the devices' buffers.

    `factor`: the schedule's. `steps`: how much of the mean's weight went to devices that took so many steps.
    `share`: of all devices, those that are in it.
    """

    mean: State
    factor: float = 1.0
    steps: Mapping[int, float] = field(default_factory=dict)
    share: float = 1.0


class Algorithm(Protocol):
    # An update is the gradient itself: many devices' batches can be one, and the server applies the rate.
    sends_gradients: ClassVar[bool]

    @property
    def sends_differences(self) -> bool:
        """Whether the round's state and an update together are the device's model after its steps."""
        ...

    @property
    def sgd(self) -> SGD:
        """The optimizer of the steps, wherever they are taken."""
        ...

    @property
    def sync_every(self) -> int:
        """Local steps a round, K."""
        ...

    @property
    def guided(self) -> bool:
        """Whether devices are sent a vector beside the state."""
        ...

    def local_steps(self, asked: int, examples: int, batch: int) -> int:
        """Steps that a device with so many examples takes where `asked` are asked of it on average."""
        ...

    def start(self, state: State) -> Server: ...

    def offer(self, server: Server) -> State:
        """The state that devices start the next round from."""
        ...

    def guide(self, server: Server) -> Tensor | None:
        """The vector (P,) that they are sent beside it, if they are `guided`."""
        ...

    def without_momentum(self) -> tuple[Algorithm, float]:
        """The algorithm without the server's momentum, and that momentum: for who keeps it elsewhere."""
        ...

    def learn(
        self,
        model: FlatModel,
        batches: Iterable[Batch],
        factor: float,
        objective: Objective = cross_entropy,
        own: Own = NOTHING,
    ) -> Learned:
        """Runs on a device, on a model that holds the round's state."""
        ...

    def step(self, server: Server, combined: Combined, layout: Layout) -> Server:
        """Runs on the coordinator."""
        ...
