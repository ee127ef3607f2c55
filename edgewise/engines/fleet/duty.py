"""A task on a device: from the frames that came to the frame that goes back. No network, no disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from edgewise import broadcast, wire
from edgewise.codecs import Codec, Raw, Sending
from edgewise.data.dataset import Split
from edgewise.device import Device, Memory, Task, Work, enter
from edgewise.evaluate import count
from edgewise.vector import FlatModel, Layout, State

BRIEF = 1 << 20  # bytes of an update whose digest takes no time to speak of


class Duty(Protocol):
    """What an agent does with what it is sent. `stores`: whether frames are kept as they come in.

    `brief`: whether training, and the digest of what comes of it, take no time to speak of.
    """

    layout: bytes
    examples: int
    tests: int
    labels: Sequence[int]
    longest: int  # bytes of a task at most
    stores: bool
    brief: bool

    @property
    def held(self) -> int:
        """The round whose state it holds; 0 for none."""
        ...

    def train(self, frames: Sequence[bytes], memory: Memory) -> tuple[Sequence[wire.Bytes], Memory]:
        """The frame of the update in pieces, and the memory that goes with it."""
        ...

    def score(self, frames: Sequence[bytes], memory: Memory) -> dict[str, Any]:
        """The body of `Scores`, of the state in the frames with what the device has for itself."""
        ...


@dataclass
class Outfit:
    """What a device works with: the model, its data, and what it agreed on with the coordinator."""

    model: FlatModel
    work: Work
    device: Device
    down: Codec
    tests: Split | None
    classes: int

    @cached_property
    def nothing(self) -> tuple[bytes, bytes]:
        """Payload and buffers of an update that changes nothing."""
        model = self.model
        payload, _ = self.work.codec.encode(torch.zeros_like(model.params), model.layout, {}, Sending())
        return payload, model.buffers.numpy().tobytes()


class Training:
    """The duty of a device that trains: `edgewise.device` does the work.

    `tells`: whether the coordinator may know how many examples of each class there are, which an evaluation
    by class would say too.
    """

    stores, brief = True, False

    def __init__(self, outfit: Outfit, tells: bool = False) -> None:
        self.outfit, self.tells = outfit, tells
        model, device = outfit.model, outfit.device
        self.layout = bytes.fromhex(model.layout.digest)
        self.examples = len(device.indices)
        self.tests = 0 if outfit.tests is None else len(outfit.tests)
        self.labels: Sequence[int] = ()
        if tells:
            labels = outfit.work.feed.labels[device.indices]
            self.labels = torch.bincount(labels, minlength=outfit.classes).tolist()
        guide = broadcast.guide_expected(outfit.down, model.layout, model.params.dtype)
        self._guide = guide if outfit.work.algorithm.guided else None
        may_come = [*self._expected(model.buffers.nbytes), *([self._guide] if self._guide else [])]
        self.longest = sum(wire.length(one.payload, one.buffers) for one in may_come)
        self._state: tuple[int, Tensor] | None = None

    @property
    def held(self) -> int:
        return self._state[0] if self._state else 0

    def train(self, frames: Sequence[bytes], memory: Memory) -> tuple[Sequence[wire.Bytes], Memory]:
        outfit = self.outfit
        if self._guide is None:
            task = self._task(frames, keep=True)
        else:
            *frames, last = frames or [b""]
            task = self._guided(self._task(frames, keep=True), last, self._guide)
        reply, memory = outfit.device.answer(task, outfit.model, outfit.work, memory)
        return reply.pieces(task.round, outfit.work.agreed), memory

    def score(self, frames: Sequence[bytes], memory: Memory) -> dict[str, Any]:
        outfit, task = self.outfit, self._task(frames, keep=False)
        if outfit.tests is None:
            raise wire.FrameError("a task to evaluate, where there is nothing to evaluate on")
        enter(outfit.model, task.state, memory.local)
        objective = outfit.work.objective
        scores, seen, loss = count(outfit.model, outfit.tests, outfit.work.feed, outfit.classes, objective)
        right = [round(score) for score in scores]
        return {
            "round": task.round,
            "right": sum(right),
            "seen": sum(seen),
            "loss": loss / sum(seen),
            "right_each": right if self.tells else [],
            "seen_each": seen if self.tells else [],
        }

    def _guided(self, task: Task, data: bytes, expected: wire.Expected) -> Task:
        """The task with what the algorithm sends beside the state, from its frame."""
        frame, model = wire.unpack(data, expected), self.outfit.model
        if frame.round != task.round:
            raise wire.FrameError(f"a guide of round {frame.round} in round {task.round}")
        coder = broadcast.full(self.outfit.down)
        guide = coder.decode(frame.payload, model.layout, model.params.dtype)
        return replace(task, guide=guide.to(model.params.device))

    def _task(self, frames: Sequence[bytes], keep: bool) -> Task:
        """The task in the frames; FrameError if they are not what was agreed on."""
        layout, dtype = self.outfit.model.layout, self.outfit.model.params.dtype
        if not frames:
            raise wire.FrameError("a task without a frame")
        state, last = self._state, len(frames) - 1
        for number, data in enumerate(frames):
            buffers = self.outfit.model.buffers.nbytes if number == last else 0
            frame = wire.unpack(data, *self._expected(buffers))
            # What it holds already may come again: the coordinator knows of it by an update in time only.
            if state is None or frame.kind is not wire.Kind.DIFFERENCE or frame.round > state[0]:
                state = (frame.round, broadcast.receive(frame, state, self.outfit.down, layout, dtype))
        assert state is not None
        if state[0] != frame.round:
            raise wire.FrameError(f"a difference to an earlier state than that of round {state[0]}")
        if keep:
            self._state = state
        found = Raw().decode(frame.buffers, Layout.vector(len(frame.buffers) // dtype.itemsize), dtype)
        on = self.outfit.model.params.device
        return Task(frame.round, frame.count, frame.value, State(state[1].to(on), found.to(on)))

    def _expected(self, buffers: int) -> list[wire.Expected]:
        model = self.outfit.model
        return broadcast.expected(self.outfit.down, model.layout, model.params.dtype, buffers)


class Idle:
    """The duty of a device for load tests: it answers as if it had trained, and had learned nothing."""

    stores = False
    held = 0
    tests = 0

    def __init__(self, outfit: Outfit, device: int) -> None:
        self.device, model = device, outfit.model
        self.layout = bytes.fromhex(model.layout.digest)
        self.examples = len(outfit.device.indices)
        self.labels: Sequence[int] = ()
        self.batch, self.agreed = outfit.work.feed.size, outfit.work.agreed
        self.steps = outfit.work.algorithm.local_steps
        self.longest = 1 << 40
        self.payload, self.buffers = outfit.nothing
        self.brief = len(self.payload) <= BRIEF  # else its digest takes its time

    def train(self, frames: Sequence[bytes], memory: Memory) -> tuple[Sequence[wire.Bytes], Memory]:
        task = wire.Header.parse(frames[0] if frames else b"")
        steps = self.steps(task.count, self.examples, self.batch)
        frame = wire.Frame(
            kind=wire.Kind.UPDATE,
            layout=self.agreed.layout,
            codec=self.agreed.codec,
            round=task.round,
            device=self.device,
            count=steps * self.batch,
            value=0.0,
            payload=self.payload,
            buffers=self.buffers,
        )
        return wire.pieces(frame), Memory(memory.step + steps)

    def score(self, frames: Sequence[bytes], memory: Memory) -> dict[str, Any]:
        raise wire.FrameError("a device for load tests has nothing to evaluate on")
