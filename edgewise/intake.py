"""What comes back in a round: updates go into a gathering, the rest into a tally, and the watch looks on.

Replies may be taken where their devices are, and what they come to sent on as one: `Pooled`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.config import Config
from edgewise.device import DIVERGED, Reply, Task
from edgewise.diagnosis import Watch
from edgewise.diagnosis.watch import Sight
from edgewise.errors import Diverged
from edgewise.vector import Layout, State


@dataclass(frozen=True)
class Pooled:
    """Several devices' replies, put together where the devices are: `mean` is weighted by examples."""

    devices: tuple[int, ...]
    losses: tuple[float, ...]
    bytes: tuple[int, ...]  # what each of them sent
    examples: tuple[int, ...]
    mean: State
    sight: Sight


@dataclass
class Tally:
    """What came back beside the updates, device by device."""

    devices: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)

    def note(self, reply: Reply | Pooled) -> None:
        count = len(reply.devices)
        self.devices += reply.devices
        self.losses += reply.losses
        if isinstance(reply, Pooled):
            self.bytes += reply.bytes
            self.examples += reply.examples
        else:  # whose devices have all done the same
            self.bytes += [reply.bytes_each] * count
            self.examples += [reply.examples // count] * count

    def steps(self, batch: int) -> dict[int, float]:
        """How many examples are of devices that took so many steps of `batch` examples."""
        found: dict[int, float] = {}
        for examples in self.examples:
            found[examples // batch] = found.get(examples // batch, 0.0) + examples
        return found


class Intake:
    """One round's. `folder`: where updates may lie meanwhile."""

    def __init__(
        self, config: Config, layout: Layout, task: Task, watch: Watch, folder: Path | None = None
    ) -> None:
        self.config, self.layout, self.task, self.watch = config, layout, task, watch
        self.tally = Tally()
        self.gathering = config.aggregate.start(task.state, folder)

    def take(self, replies: Iterable[Reply | Pooled]) -> None:
        """Diverged for a loss that is not finite."""
        for reply in replies:
            self._check(reply.devices, reply.losses)
            if isinstance(reply, Pooled):
                sent, weight = reply.mean, sum(reply.examples)
                self.watch.join(reply.sight)
            else:
                sent, weight = self._decoded(reply), reply.examples
                self.watch.add(reply.devices, sent, weight)
            self.gathering.add(sent, weight=weight)
            self.tally.note(reply)

    def _decoded(self, reply: Reply) -> State:
        """A reply's update and buffers, where the model is."""
        like, codec = self.task.state, self.config.codec
        update = reply.update(codec, self.layout, like.params.dtype)
        if not codec.lossless:  # what a codec makes of zeros may be something else
            for stretch in (self.layout.frozen, self.layout.local):
                update[stretch] = 0
        return State(update.to(like.params.device), reply.buffers.to(like.buffers.device))

    def _check(self, devices: Sequence[int], losses: Sequence[float]) -> None:
        for device, loss in zip(devices, losses, strict=True):
            if not math.isfinite(loss):
                raise Diverged(f"round {self.task.round}, device {device}: the loss is {loss}; {DIVERGED}")
