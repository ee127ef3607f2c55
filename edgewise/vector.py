"""Flat state: a model's parameters are one contiguous vector, its floating-point buffers another.

The module's own parameters, gradients and buffers are views into these vectors, so an algorithm works on
one tensor (`update = after - before`), aggregation is one `add_`, and a codec sees one vector. `Layout` says
which stretch of the vector is what; two machines compare its digest before they exchange anything.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from edgewise.models.kinds import LOCAL, SWITCH, buffer_kinds, kinds
from edgewise.models.outputs import logits

NOWHERE = slice(0, 0)


@dataclass(frozen=True)
class Entry:
    """One named tensor's place in a flat vector."""

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int

    @property
    def stop(self) -> int:
        return self.start + torch.Size(self.shape).numel()

    @property
    def owner(self) -> str:
        """The name of the module that has it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """Where every parameter and buffer lies. Both are ordered by kind, then as the model defines them, so

    that what differs by kind (a tenth of the learning rate on Fixup's scalars) are contiguous segments.
    `fingerprint` stands for what shapes do not show (group counts, eps), `head` is the name of the last
    layer: of the module that defines the last matrix or filters; None where there are none.
    """

    params: tuple[Entry, ...]
    buffers: tuple[Entry, ...]
    fingerprint: str = ""
    head: str | None = None

    @classmethod
    def of(cls, model: nn.Module, fingerprint: str = "") -> Layout:
        """The layout of a model. Integer buffers (step counters) have no place in it: they never travel."""
        kind = kinds(model)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        ordered = sorted(shapes, key=lambda name: kind[name])  # stable: the model's order within a kind
        matrices = [name for name, shape in shapes.items() if len(shape) > 1]
        own = buffer_kinds(model)
        floating = {name: tuple(b.shape) for name, b in model.named_buffers() if b.is_floating_point()}
        return cls(
            _lay([(name, shapes[name], kind[name]) for name in ordered]),
            _lay(
                [(name, floating[name], own[name]) for name in sorted(floating, key=lambda name: own[name])]
            ),
            fingerprint,
            matrices[-1].rpartition(".")[0] if matrices else None,
        )

    @classmethod
    def vector(cls, count: int) -> Layout:
        """The layout of one plain vector (count,), for what has no model."""
        return cls(_lay([("vector", (count,), "weight")]), ())

    @property
    def count(self) -> int:
        """Number of parameters."""
        return self.params[-1].stop if self.params else 0

    @property
    def buffer_count(self) -> int:
        """Number of values in floating-point buffers."""
        return self.buffers[-1].stop if self.buffers else 0

    @cached_property
    def segments(self) -> tuple[tuple[str, slice], ...]:
        """The contiguous stretch of each kind of parameter, in order."""
        return _segments(self.params)

    @property
    def frozen(self) -> slice:
        """The stretch of what is not trained; an empty one where there is none."""
        return dict(self.segments).get("frozen", NOWHERE)

    @property
    def local(self) -> slice:
        """The stretch of parameters that every device has for itself; an empty one where there are none."""
        return dict(self.segments).get(LOCAL, NOWHERE)

    @cached_property
    def local_buffers(self) -> slice:
        """The same of buffers."""
        return dict(_segments(self.buffers)).get(LOCAL, NOWHERE)

    @cached_property
    def switches(self) -> slice:
        """The stretch of buffers that the coordinator sets to 0 or 1; an empty one where there are none."""
        return dict(_segments(self.buffers)).get(SWITCH, NOWHERE)

    @property
    def personal(self) -> bool:
        """Whether some of the model stays on devices, so that each has a model of its own."""
        return any(entry.kind == LOCAL for entry in (*self.params, *self.buffers))

    @cached_property
    def own(self) -> Layout:
        """The layout of the local parameters alone."""
        return Layout(_lay([(e.name, e.shape, e.kind) for e in self.params if e.kind == LOCAL]), ())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes, kinds and the model's configuration."""
        rows = [[(e.name, e.shape, e.kind) for e in part] for part in (self.params, self.buffers)]
        return hashlib.sha256(json.dumps([rows, self.fingerprint]).encode()).hexdigest()


def _lay(rows: list[tuple[str, tuple[int, ...], str]]) -> tuple[Entry, ...]:
    entries, start = [], 0
    for name, shape, kind in rows:
        entries.append(Entry(name, shape, kind, start))
        start = entries[-1].stop
    return tuple(entries)


def _segments(entries: tuple[Entry, ...]) -> tuple[tuple[str, slice], ...]:
    bounds: dict[str, tuple[int, int]] = {}
    for entry in entries:
        bounds[entry.kind] = (bounds.get(entry.kind, (entry.start, 0))[0], entry.stop)
    return tuple((kind, slice(*bound)) for kind, bound in bounds.items())


@dataclass(frozen=True)
class State:
    """A model's state, apart from the module: `params` (P,) and `buffers` (B,)."""

    params: Tensor
    buffers: Tensor

    def clone(self) -> State:
        return State(self.params.clone(), self.buffers.clone())

    def local(self, layout: Layout) -> State:
        """A copy of what is local in it."""
        return State(self.params[layout.local].clone(), self.buffers[layout.local_buffers].clone())

    def settle(self, layout: Layout, local: State) -> None:
        """Overwrite what is local in it, in place; the source may lie in another memory."""
        self.params[layout.local].copy_(local.params)
        self.buffers[layout.local_buffers].copy_(local.buffers)

    def digest(self, layout: Layout) -> str:
        """SHA-256 over the layout and every bit of the state."""
        content = hashlib.sha256(layout.digest.encode())
        for tensor in (self.params, self.buffers):
            content.update(tensor.detach().cpu().numpy().tobytes())
        return content.hexdigest()


class FlatModel:
    """A module whose parameters, gradients and floating-point buffers are views into flat vectors.

    `params`, `grads` (P,) and `buffers` (B,) share memory with the module. What would detach a tensor from
    them (`zero_grad(set_to_none=True)`, `load_state_dict(assign=True)`, `Module.to`) is found by `check`.
    """

    def __init__(self, module: nn.Module, layout: Layout, autocast: torch.dtype | None = None) -> None:
        self.module, self.layout, self.autocast = module, layout, autocast
        self._teacher: FlatModel | None = None
        first = next(module.parameters())
        self.params = torch.zeros(layout.count, dtype=first.dtype, device=first.device)
        self.grads = torch.zeros_like(self.params)
        self.buffers = self.params.new_zeros(layout.buffer_count)
        parameters = dict(module.named_parameters())
        for entry in layout.params:
            parameter = parameters[entry.name]
            view = self.params[entry.start : entry.stop].view(entry.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = self.grads[entry.start : entry.stop].view(entry.shape)
        for entry in layout.buffers:
            owner, _, name = entry.name.rpartition(".")
            view = self.buffers[entry.start : entry.stop].view(entry.shape)
            view.copy_(module.get_buffer(entry.name))
            module.get_submodule(owner)._buffers[name] = view

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of a batch (N, C, H, W), in fp32 or wider whatever the precision inside."""
        if self.autocast is None:
            return logits(self.module(x))
        with torch.autocast(x.device.type, self.autocast):
            return logits(self.module(x)).float()

    @property
    def state(self) -> State:
        """The state itself: views of it, not a copy."""
        return State(self.params, self.buffers)

    def read(self) -> State:
        """A copy of the state."""
        return self.state.clone()

    def write(self, state: State) -> None:
        """Overwrite the state."""
        self.params.copy_(state.params)
        self.buffers.copy_(state.buffers)

    def teacher(self) -> Callable[[Tensor], Tensor]:
        """The model as it is now, for logits (N, classes) without a gradient, in evaluation mode.

        Good until the next call: there is one copy, made at the first.
        """
        if self._teacher is None:
            self._teacher = FlatModel(copy.deepcopy(self.module).eval(), self.layout, self.autocast)
            self._teacher.drop_gradients()
        twin = self._teacher
        twin.write(self.state)

        def answer(x: Tensor) -> Tensor:
            with torch.no_grad():
                return twin(x)

        return answer

    def drop_gradients(self) -> None:
        """Give back the memory of the gradients, for a model that is not to be trained."""
        self.grads = self.grads.new_zeros(0)
        for parameter in self.module.parameters():
            parameter.grad = None

    def check(self) -> None:
        """Raise if a tensor of the module no longer lies in the flat vectors."""
        parameters = dict(self.module.named_parameters())
        for entry in self.layout.params:
            parameter = parameters[entry.name]
            _lies_at(parameter.data, self.params, entry)
            _lies_at(parameter.grad, self.grads, entry)
        for entry in self.layout.buffers:
            _lies_at(self.module.get_buffer(entry.name), self.buffers, entry)


def _lies_at(tensor: Tensor | None, flat: Tensor, entry: Entry) -> None:
    expected = flat.data_ptr() + entry.start * flat.element_size()
    if tensor is None or (tensor.data_ptr() != expected and tensor.numel()):
        raise RuntimeError(f"{entry.name} was detached from the model's flat vector")


ROW = 1024  # values whose squares are added up before they are widened
TINY = 1e-9  # a length below which squares may be too small for a float32


def length(vector: Tensor) -> float:
    """The Euclidean norm, of float32 to six digits or more; the same wherever in memory the vector lies."""
    found = _length(vector)
    if math.isfinite(found) and found > TINY:
        return found
    top = max(abs(float(end)) for end in torch.aminmax(vector)) if len(vector) else 0.0
    if not 0 < top < math.inf:  # NaN neither
        return top
    scale = 2.0 ** (math.frexp(top)[1] - 1)  # a power of two: nothing is rounded
    return scale * _length(vector / scale)


def _length(vector: Tensor) -> float:
    """Three times faster than to widen every value."""
    whole = len(vector) // ROW * ROW
    rows = torch.linalg.vector_norm(vector[:whole].view(-1, ROW), dim=1).double()
    return math.sqrt(float(rows.dot(rows) + vector[whole:].double().square().sum()))


class Mean:
    """Weighted mean of states, one at a time, so that no round holds every update in memory."""

    def __init__(self, like: State) -> None:
        self.total = State(torch.zeros_like(like.params), torch.zeros_like(like.buffers))
        self.weight = 0.0

    def add(self, state: State, weight: float, scale: float = 1.0) -> None:
        """One more state. `scale` multiplies its parameters, but not what they weigh."""
        self.total.params.add_(state.params, alpha=weight * scale)
        self.total.buffers.add_(state.buffers, alpha=weight)
        self.weight += weight

    def value(self) -> State:
        """The mean; the sum is divided in place, so ask once."""
        if self.weight == 0:
            raise RuntimeError("the mean of no updates")
        return State(self.total.params.div_(self.weight), self.total.buffers.div_(self.weight))
