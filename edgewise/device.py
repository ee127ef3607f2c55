"""The device's share of a round. Every engine, simulated or real, runs this and nothing else.

    task -> load the state -> batches -> algorithm.learn -> codec.encode -> reply -> frame

A device owns its memory (its place in its data, its codec's residual, its algorithm's control variate).
`answer` returns the next memory beside the reply; whoever runs the device commits it once the coordinator has
taken the reply.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgewise import randomness, wire
from edgewise.algorithms.base import Algorithm, Own
from edgewise.algorithms.base import Memory as AlgorithmMemory
from edgewise.broadcast import Broadcast
from edgewise.codecs import Codec, NotFinite, Payload, Raw, Sending
from edgewise.codecs import Memory as CodecMemory
from edgewise.data.feed import Feed
from edgewise.errors import Diverged
from edgewise.local import Batch
from edgewise.objectives import Objective
from edgewise.vector import FlatModel, Layout, State

ALGORITHM = "algorithm/"  # before the names of an algorithm's vectors, in files
PARAMS, BUFFERS = LOCAL = "local/params", "local/buffers"  # the names of what is the device's own
DIVERGED = "training diverged (try a lower lr, or a warm-up); checkpoints of earlier rounds are kept"


@dataclass(frozen=True)
class Task:
    """What the coordinator asks of every device of a cohort."""

    round: int
    steps: int
    factor: float  # of the peak learning rate
    state: State  # what devices hold once the way down has brought it to them
    way: Broadcast | None = None  # down to devices that are not in this process
    guide: Tensor | None = None  # (P,), what the algorithm sends beside the state


@dataclass(frozen=True)
class Reply:
    """What comes back. One reply may speak for several devices whose updates were averaged on the way.

    `payload`: the bytes that travel; or the update itself (P,), where they would be nothing else and nothing
    travels (`Work.near`). It may be overwritten by the next reply.
    """

    devices: tuple[int, ...]
    payload: Payload | Tensor
    buffers: Tensor
    examples: int
    losses: tuple[float, ...]  # one for each device

    @property
    def bytes_each(self) -> int:
        """What each of the devices sent: a frame with its payload and its buffers."""
        payload = self.payload
        size = payload.nbytes if isinstance(payload, Tensor) else len(payload)
        return wire.length(size, self.buffers.nbytes)

    def update(self, codec: Codec, layout: Layout, dtype: torch.dtype) -> Tensor:
        """The update (P,) that the coordinator has of it; PayloadError if there is none in its bytes."""
        payload = self.payload
        return payload if isinstance(payload, Tensor) else codec.decode(payload, layout, dtype)

    def pack(self, round: int, agreed: wire.Expected) -> bytes:
        """One device's reply as the frame that travels."""
        return b"".join(self.pieces(round, agreed))

    def pieces(self, round: int, agreed: wire.Expected) -> tuple[wire.Bytes, ...]:
        """The frame's bytes in pieces."""
        (device,), (loss,) = self.devices, self.losses
        payload = _raw(self.payload) if isinstance(self.payload, Tensor) else self.payload
        return wire.pieces(
            wire.Frame(
                kind=wire.Kind.UPDATE,
                layout=agreed.layout,
                codec=agreed.codec,
                round=round,
                device=device,
                count=self.examples,
                value=loss,
                payload=payload,
                buffers=_raw(self.buffers),
            )
        )

    @classmethod
    def unpack(
        cls, data: wire.Bytes, agreed: wire.Expected, dtype: torch.dtype, summed: bool = False
    ) -> Reply:
        """The reply in a frame, with a view of its payload; FrameError if there is none. As `wire.unpack`."""
        frame = wire.unpack(data, agreed, summed=summed)
        buffers = Raw().decode(frame.buffers, Layout.vector(len(frame.buffers) // dtype.itemsize), dtype)
        return cls((frame.device,), frame.payload, buffers, frame.count, (frame.value,))


@dataclass(frozen=True)
class Memory:
    """What a device keeps from round to round. `local`: the part of the model that is its own; None before

    its first round, and where no part of the model is.
    """

    step: int = 0
    codec: CodecMemory = field(default_factory=dict)
    algorithm: AlgorithmMemory = field(default_factory=dict)
    local: State | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All vectors by name, for a file."""
        own = {f"{ALGORITHM}{name}": tensor for name, tensor in self.algorithm.items()}
        if self.local is not None:
            own |= {PARAMS: self.local.params, BUFFERS: self.local.buffers}
        return {name: tensor.contiguous() for name, tensor in {**self.codec, **own}.items()}

    @classmethod
    def of(cls, step: int, tensors: Mapping[str, Tensor]) -> Memory:
        """The memory in a file, copied: a file's bytes are not aligned as those of a fresh tensor, and low

        bits may depend on it.
        """
        copied = {name: tensor.clone() for name, tensor in tensors.items()}
        local = State(copied.pop(PARAMS), copied.pop(BUFFERS)) if copied.keys() >= set(LOCAL) else None
        own = {n.removeprefix(ALGORITHM): t for n, t in copied.items() if n.startswith(ALGORITHM)}
        return cls(step, {n: t for n, t in copied.items() if not n.startswith(ALGORITHM)}, own, local)


@dataclass(frozen=True)
class Terms:
    """What the devices and the coordinator of a run agree on beside the model."""

    algorithm: Algorithm
    codec: Codec
    agreed: wire.Expected  # what both ends know of every reply's frame
    objective: Objective

    @property
    def plain(self) -> bool:
        """Whether an update's bytes are the update, and as many whatever is in it."""
        return self.codec.lossless and self.codec.fixed

    def work(self, feed: Feed) -> Work:
        """The same, with a device's data."""
        return Work(self.algorithm, self.codec, self.agreed, self.objective, feed)


@dataclass(frozen=True)
class Work(Terms):
    """How a device works. `near`: its reply stays in this process and its codec is plain, so that the update

    need not become bytes (nor leave an accelerator's memory for it).
    """

    feed: Feed
    near: bool = False


@dataclass(frozen=True)
class Device:
    """A participant: an id and the indices of the examples that are its own."""

    id: int
    indices: Tensor

    def answer(self, task: Task, model: FlatModel, work: Work, memory: Memory) -> tuple[Reply, Memory]:
        """One round on this device, in `model` (whose state is overwritten)."""
        enter(model, task.state, memory.local)
        size = work.feed.size
        steps = work.algorithm.local_steps(task.steps, len(self.indices), size)
        batches = self.batches(work.feed, memory.step, steps)
        own = Own(memory.algorithm, self.counts(work.feed), task.guide)
        update, loss, kept = work.algorithm.learn(model, batches, task.factor, work.objective, own)
        checked(self.id, task, loss)
        local = leave(model, task.state, update)
        payload, codec = encoded(self.id, task, work, model.layout, update, memory)
        examples = steps * size
        reply = Reply((self.id,), payload, model.buffers.clone(), examples, (loss,))
        kept = {name: tensor.cpu() for name, tensor in kept.items()}
        return reply, Memory(memory.step + steps, codec, kept, local)

    def counts(self, feed: Feed) -> Tensor | None:
        """The device's examples of each class, up to the last that it has; None where there are targets."""
        if feed.split.targets is not None:
            return None
        return torch.bincount(feed.labels[self.indices])

    def batches(self, feed: Feed, start: int, steps: int) -> Iterator[Batch]:
        """The batches of the device's steps start .. start + steps - 1."""
        for step in range(start, start + steps):
            yield feed.batch(self.id, self.indices, step)


def encoded(
    device: int, task: Task, work: Work, layout: Layout, update: Tensor, memory: Memory
) -> tuple[Payload | Tensor, CodecMemory]:
    """A device's update as the payload that it sends, and what its codec remembers then."""
    if work.near:
        assert work.plain
        return update, memory.codec
    key = randomness.key(work.feed.seed, "codec", device, task.round)
    # The server multiplies a gradient by the learning rate; an update has it in it already.
    sending = Sending(key, task.factor if work.algorithm.sends_gradients else 1.0)
    try:
        return work.codec.encode(update, layout, memory.codec, sending)
    except NotFinite as error:
        raise Diverged(f"round {task.round}, device {device}: {error}; {DIVERGED}") from None


def _raw(vector: Tensor) -> Payload:
    return Raw().encode(vector, Layout.vector(vector.numel()), {}, Sending())[0]


def checked(device: int, task: Task, loss: float) -> float:
    """A device's mean loss; Diverged if it is none."""
    if not math.isfinite(loss):
        raise Diverged(f"round {task.round}, device {device}: the loss is {loss}; {DIVERGED}")
    return loss


def enter(model: FlatModel, state: State, local: State | None) -> None:
    """Make `model` a device's: the state, and in place of what is local in it the device's own, if it has

    any yet.
    """
    model.write(state)
    if local is not None:
        model.state.settle(model.layout, local)


def leave(model: FlatModel, state: State, update: Tensor) -> State | None:
    """Take what is the device's own out of a model that has learned, and out of its update; None if nothing

    is. What leaves the device then says nothing of it: no change of parameters, and `state`'s buffers.
    """
    layout = model.layout
    if not layout.personal:
        return None
    local = model.state.local(layout)
    update[layout.local] = 0
    model.buffers[layout.local_buffers].copy_(state.buffers[layout.local_buffers])
    return State(local.params.cpu(), local.buffers.cpu())
