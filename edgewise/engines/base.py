"""The interface of an engine, and what the simulated ones share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from edgewise.cohorts import first
from edgewise.device import Device, Reply, Task, Work, enter
from edgewise.evaluate import Apart, Evaluation
from edgewise.intake import Pooled
from edgewise.memories import Memories
from edgewise.vector import FlatModel


class Remembering(Protocol):
    """What devices remember, as far as the coordinator has a hand in it."""

    def commit(self, devices: Iterable[int]) -> None:
        """The replies of these devices are in the coordinator's state now."""
        ...

    def save(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        ...

    def sweep(self) -> None:
        """The checkpoint is on the disk: what only earlier rounds needed can go."""
        ...


class Engine(Protocol):
    @property
    def memories(self) -> Remembering: ...

    @property
    def crowded(self) -> bool:
        """Whether so much is kept since the last checkpoint that the next one should not wait."""
        ...

    def choose(self, round: int, ranking: Sequence[int], size: int) -> Sequence[int]:
        """The devices to ask, in order: the first `size` of the ranking where all can be reached."""
        ...

    def ask(self, task: Task, cohort: list[int]) -> Iterator[Reply | Pooled]:
        """Give the task to every device of the cohort and yield the replies, in the cohort's order.

        They may have been put together where the devices are. Where devices are real, some may not answer:
        theirs are left out. Others may be asked in their place: they are added to the cohort.
        """
        ...

    def evaluate(self, task: Task) -> Evaluation | None:
        """How good the task's state is on what devices hold out, with what each has for itself; None where

        devices cannot be asked.
        """
        ...

    def labels(self) -> Mapping[int, Sequence[int]]:
        """What real devices told of themselves: how many examples of each class they hold."""
        ...

    def close(self) -> None:
        """Let go of the devices."""
        ...


class Simulated:
    """Devices in this process: all of them can always be asked, and their memories lie here."""

    crowded = False

    def __init__(
        self,
        devices: Sequence[Device],
        model: FlatModel,
        work: Work,
        memories: Memories,
        trials: Callable[[], Apart] | None = None,
    ) -> None:
        """`trials`: begins an evaluation of all devices, where each has a model of its own."""
        self.devices, self.model, self.work, self.memories = devices, model, work, memories
        self.trials = trials

    def choose(self, round: int, ranking: Sequence[int], size: int) -> Sequence[int]:
        return first(ranking, size)

    def evaluate(self, task: Task) -> Evaluation | None:
        return None if self.trials is None else self.tried(task, self.trials(), self.devices).value()

    def tried(self, task: Task, apart: Apart, devices: Iterable[Device]) -> Apart:
        """The evaluation, with these devices tried."""
        for device in devices:
            enter(self.model, task.state, self.memories[device.id].local)
            apart.add(device.id, self.model, self.work.feed, self.work.objective)
        return apart

    def labels(self) -> Mapping[int, Sequence[int]]:
        return {}  # who simulates dealt the examples

    def close(self) -> None:
        pass
