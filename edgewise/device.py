"""The device's share of a round. Every engine, simulated or real, runs this and nothing else.

    task -> load the state -> batches -> algorithm.learn -> codec.encode -> reply

A device owns its memory (its place in its data, its codec's residual). `answer` returns the next memory
beside the reply; whoever runs the device commits it once the coordinator has taken the reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edgewise.algorithms.base import Algorithm
from edgewise.codecs.base import Codec
from edgewise.data.feed import Feed
from edgewise.local import Batch
from edgewise.vector import FlatModel, State


@dataclass(frozen=True)
class Task:
    """What the coordinator asks of every device of a cohort."""

    round: int
    steps: int
    factor: float  # of the peak learning rate
    state: State


@dataclass(frozen=True)
class Reply:
    """What comes back. One reply may speak for several devices whose updates were averaged on the way."""

    devices: tuple[int, ...]
    payload: bytes
    buffers: Tensor
    examples: int
    losses: tuple[float, ...]  # one for each device

    @property
    def bytes_up(self) -> int:
        """What the devices sent: each its payload and its buffers."""
        return len(self.devices) * (len(self.payload) + self.buffers.numel() * self.buffers.element_size())


@dataclass(frozen=True)
class Memory:
    """What a device keeps from round to round."""

    step: int = 0
    codec: Any = None


@dataclass(frozen=True)
class Work:
    """How a device works: the same on every device of a run."""

    algorithm: Algorithm
    codec: Codec
    feed: Feed


@dataclass(frozen=True)
class Device:
    """A participant: an id and the indices of the examples that are its own."""

    id: int
    indices: Tensor

    def answer(self, task: Task, model: FlatModel, work: Work, memory: Memory) -> tuple[Reply, Memory]:
        """One round on this device, in `model` (whose state is overwritten)."""
        model.write(task.state)
        update, loss = work.algorithm.learn(
            model, self.batches(work.feed, memory.step, task.steps), task.factor
        )
        payload, codec = work.codec.encode(update, memory.codec)
        examples = task.steps * work.feed.size
        reply = Reply((self.id,), payload, model.buffers.clone(), examples, (loss,))
        return reply, Memory(memory.step + task.steps, codec)

    def batches(self, feed: Feed, start: int, steps: int) -> Iterator[Batch]:
        """The batches of the device's steps start .. start + steps - 1."""
        for step in range(start, start + steps):
            yield feed.batch(self.id, self.indices, step)
