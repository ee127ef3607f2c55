"""The way down: how the devices of a cohort come to hold the state that a round starts from.

`FullState` sends every device the whole state. `Differences` sends what changed, with a codec that may lose
something: the devices hold one reference state, the same on all of them, and

    payload = encode(state - reference);  reference <- reference + decode(payload)      on both ends

What a payload loses is still in the next difference, so this is error feedback without a residual. Devices
train from the reference; the coordinator's own state stays exact. A device that missed rounds gets the
differences it missed, and one that missed so many that they would be longer (or all of them) the reference.

Some algorithms send a vector beside the state (`guide`): in a frame of its own, with nothing lost, to every
device every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from edgewise import codecs, randomness, wire
from edgewise.codecs import Codec, Memory, NotFinite, Raw, Sending
from edgewise.errors import Diverged
from edgewise.vector import Layout, State

REFERENCE, LOG, MEMORY = "reference", "log", "memory/"
NOT_FINITE = "the model is no longer finite; training diverged (try a lower lr, or a warm-up)"


class Broadcast(Protocol):
    def announce(self, round: int, state: State) -> State:
        """Begin a round; the state that the cohort's devices hold once they have their payloads."""
        ...

    def payloads(self, device: int) -> tuple[wire.Kind, Sequence[bytes]]:
        """What `device` is sent this round, one frame each; the last carries the buffers."""
        ...

    def missed(self, device: int) -> int:
        """How many differences that is; 0 for a full state. Who missed the same is sent the same."""
        ...

    def bytes_each(self, device: int) -> int:
        """The length of `device`'s frames."""
        ...

    def deliver(self, devices: Iterable[int]) -> None:
        """These devices hold this round's state now."""
        ...

    def believe(self, device: int, round: int) -> None:
        """The device says that it holds the state of `round`; 0: none, as after a restart."""
        ...

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and a note from which `restore` goes on."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None: ...


@dataclass
class FullState:
    """Every device gets the whole state every round, with a codec that loses nothing."""

    codec: Codec
    layout: Layout
    seed: int
    state: State | None = None
    length: int = 0

    def announce(self, round: int, state: State) -> State:
        self.state = state
        self.length = wire.length(self._length(), state.buffers.nbytes)
        return state

    def payloads(self, device: int) -> tuple[wire.Kind, Sequence[bytes]]:
        return wire.Kind.STATE, [self._payload()]

    def missed(self, device: int) -> int:
        return 0

    def bytes_each(self, device: int) -> int:
        return self.length

    def deliver(self, devices: Iterable[int]) -> None:
        pass

    def believe(self, device: int, round: int) -> None:
        pass

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        pass

    def _payload(self) -> bytes:
        assert self.state is not None
        return self.codec.encode(self.state.params, self.layout, {}, Sending())[0]

    def _length(self) -> int:
        assert self.state is not None
        fixed = self.codec.fixed
        return self.codec.bound(self.layout, self.state.params.dtype) if fixed else len(self._payload())


@dataclass
class Differences:
    """What changed since the reference, with a codec that may lose something."""

    codec: Codec
    layout: Layout
    seed: int
    round: int = 0
    reference: State | None = None
    memory: Memory = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)  # the payloads up to this round's, the oldest first
    held: dict[int, int] = field(default_factory=dict)  # by device: the round of the state it holds

    def announce(self, round: int, state: State) -> State:
        if self.reference is None:
            self.reference = state.clone()
        else:
            params = self.reference.params
            difference = state.params - params
            sending = Sending(randomness.key(self.seed, "broadcast", 0, round), fed=True)
            try:
                payload, self.memory = self.codec.encode(difference, self.layout, self.memory, sending)
            except NotFinite:
                raise Diverged(f"round {round - 1}: {NOT_FINITE}") from None
            params.add_(self.codec.decode(payload, self.layout, params.dtype).to(params.device))
            self.reference = State(params, state.buffers)
            self.log.append(payload)
            # Frames that are longer than that of the state itself are of no use to anyone.
            while sum(_framed(len(one)) for one in self.log) > _framed(params.nbytes):
                del self.log[0]
        self.round = round
        return self.reference

    def payloads(self, device: int) -> tuple[wire.Kind, Sequence[bytes]]:
        missed = self._missed(device)
        if missed:
            return wire.Kind.DIFFERENCE, missed
        assert self.reference is not None
        return wire.Kind.STATE, [Raw().encode(self.reference.params, self.layout, {}, Sending())[0]]

    def missed(self, device: int) -> int:
        return len(self._missed(device))

    def bytes_each(self, device: int) -> int:
        assert self.reference is not None
        missed = sum(_framed(len(one)) for one in self._missed(device))
        return (missed or _framed(self.reference.params.nbytes)) + self.reference.buffers.nbytes

    def deliver(self, devices: Iterable[int]) -> None:
        self.held.update(dict.fromkeys(devices, self.round))

    def believe(self, device: int, round: int) -> None:
        self.held[device] = round

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.reference is None:
            return {}, {}
        log = torch.frombuffer(bytearray(b"".join(self.log)) or bytearray(1), dtype=torch.uint8)
        tensors = {REFERENCE: self.reference.params, LOG: log}
        tensors |= {f"{MEMORY}{name}": tensor for name, tensor in self.memory.items()}
        note = {"round": self.round, "lengths": [len(payload) for payload in self.log], "held": self.held}
        return tensors, note

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        if not note:
            return
        self.round = note["round"]
        self.held = {int(device): round for device, round in note["held"].items()}
        content, start = tensors[LOG].cpu().numpy().tobytes(), 0
        for length in note["lengths"]:
            self.log.append(content[start : start + length])
            start += length
        self.memory = {n.removeprefix(MEMORY): t.cpu() for n, t in tensors.items() if n.startswith(MEMORY)}
        params = tensors[REFERENCE]
        self.reference = State(params, params.new_zeros(0))  # the next round brings its own buffers

    def _missed(self, device: int) -> Sequence[bytes]:
        """The payloads that take the device from what it holds to this round's state; none for a newcomer."""
        behind = self.round - self.held.get(device, 0)  # the log is shorter than all rounds
        return self.log[-behind:] if 0 < behind <= len(self.log) else ()


def _framed(payload: int) -> int:
    return wire.length(payload, 0)


def broadcast(codec: Codec, layout: Layout, seed: int) -> Broadcast:
    """The way down for a codec, which has no feedback around it."""
    return (FullState if codec.lossless else Differences)(codec, layout, seed)


def frames(
    way: Broadcast, device: int, task: wire.Frame, marks: Mapping[wire.Kind, bytes]
) -> list[tuple[wire.Bytes, ...]]:
    """What `device` is sent, in order, from a `task` whose kind, codec and payload are filled in here.

    Each frame comes in pieces (`wire.pieces`).

    The frames are the same for all devices that hold the same, unless `task` is addressed to one.

    `marks`: of the codec that each kind of frame is coded with. Only the last frame carries the buffers.
    """
    kind, payloads = way.payloads(device)
    first = task.round - len(payloads) + 1
    found = list[tuple[wire.Bytes, ...]]()
    for number, payload in enumerate(payloads, start=first):
        buffers = task.buffers if number == task.round else b""
        found.append(
            wire.pieces(
                replace(
                    task,
                    kind=kind,
                    codec=marks[kind],
                    round=number,
                    payload=payload,
                    buffers=buffers,
                )
            )
        )
    return found


def guide_payload(guide: Tensor, codec: Codec, layout: Layout) -> bytes:
    """What stands for a guide (P,), where `codec` codes the way down."""
    return full(codec).encode(guide, layout, {}, Sending())[0]


def guide_bytes(guide: Tensor | None, codec: Codec, layout: Layout) -> int:
    """The length of a guide's frame; 0 where there is none."""
    if guide is None:
        return 0
    coder = full(codec)
    payload = coder.bound(layout, guide.dtype) if coder.fixed else len(guide_payload(guide, codec, layout))
    return wire.length(payload, 0)


def guide_expected(codec: Codec, layout: Layout, dtype: torch.dtype) -> wire.Expected:
    """What a device may be sent as a guide."""
    coder, mark = full(codec), marks(codec)[wire.Kind.STATE]
    bound = coder.bound(layout, dtype)
    return wire.Expected(wire.Kind.GUIDE, wire.layout_mark(layout.digest), mark, bound, 0, coder.fixed)


def full(codec: Codec) -> Codec:
    """What a full state is coded with, where `codec` codes the way down: nothing of it may be lost."""
    return codec if codec.lossless else Raw()


def marks(codec: Codec) -> dict[wire.Kind, bytes]:
    """Of the codec of each kind of frame that a device may be sent."""
    coded = {wire.Kind.STATE: full(codec), wire.Kind.DIFFERENCE: codec}
    return {kind: wire.codec_mark(codecs.text(one, feedback=False)) for kind, one in coded.items()}


def expected(codec: Codec, layout: Layout, dtype: torch.dtype, buffers: int) -> list[wire.Expected]:
    """What a device may be sent, with `buffers` bytes of buffers: those are in the last frame of a round."""
    return [
        wire.Expected(
            kind, wire.layout_mark(layout.digest), mark, one.bound(layout, dtype), buffers, one.fixed
        )
        for (kind, mark), one in zip(marks(codec).items(), (full(codec), codec), strict=True)
    ]


def receive(
    frame: wire.Frame, held: tuple[int, Tensor] | None, codec: Codec, layout: Layout, dtype: torch.dtype
) -> Tensor:
    """The device's end: the parameters (P,) it holds after `frame`, from the (round, parameters) before it.

    FrameError for a difference to what the device does not hold.
    """
    if frame.kind is wire.Kind.STATE:
        return full(codec).decode(frame.payload, layout, dtype)
    if held is None or held[0] != frame.round - 1:
        raise wire.FrameError(f"a difference to round {frame.round - 1}, which this device does not hold")
    return held[1] + codec.decode(frame.payload, layout, dtype)
