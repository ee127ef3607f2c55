"""Flat state: what is a view of what, what tears a view off, and where things lie."""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import EdgewiseError
from edgewise.models import MODELS, build
from edgewise.models.kinds import kinds
from edgewise.models.norms import NORMS, Group
from edgewise.vector import Entry, FlatModel, Layout, Mean, State, length

SHAPE = (1, 8, 8)
EVERY_MODEL = [*(("resnet18", name) for name in NORMS), ("fixup-resnet18", "group")]
every_model = pytest.mark.parametrize(("name", "norm"), EVERY_MODEL)


class Mixed(nn.Module):
    """A bit of everything: parameters of three kinds in no order, float and integer buffers, one nested."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)  # with the integer counter that ours leaves out
        self.last = nn.Linear(4, 2)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("calls", torch.zeros(3, dtype=torch.int64))
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x))) * self.scale


def made(name: str, norm: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return build(name, SHAPE, 3, 4, NORMS[norm](), seed=0).to(dtype)


def flatten(module: nn.Module) -> FlatModel:
    return FlatModel(module, Layout.of(module))


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *SHAPE, dtype=torch.float64), torch.arange(count) % 3


def learn(module: nn.Module, x: Tensor, y: Tensor) -> None:
    nn.functional.cross_entropy(module(x), y).backward()


def gather(layout: Layout, tensors: dict[str, Tensor]) -> Tensor:
    """The named tensors end to end, in the layout's order."""
    return torch.cat([tensors[entry.name].flatten() for entry in layout.params])


# ---- the flat model ----


@every_model
def test_flattening_changes_no_value(name: str, norm: str) -> None:
    module = made(name, norm)
    plain, flat = copy.deepcopy(module), flatten(module)
    assert flat.params.dtype == flat.grads.dtype == flat.buffers.dtype == torch.float64
    assert torch.equal(flat.params, gather(flat.layout, dict(plain.named_parameters())))
    assert not flat.grads.any()
    expected = plain.state_dict()
    assert flat.module.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in flat.module.state_dict().items())


@every_model
def test_gradients_and_statistics_land_in_the_vectors(name: str, norm: str) -> None:
    module = made(name, norm)
    with torch.no_grad():  # Fixup starts with zeros that hide most of its gradient
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    plain, flat, (x, y) = copy.deepcopy(module), flatten(module), batch()
    learn(plain, x, y)
    flat.module.train()
    loss = nn.functional.cross_entropy(flat(x), y)
    loss.backward()
    gradients = {key: p.grad for key, p in plain.named_parameters() if p.grad is not None}
    assert torch.equal(flat.grads, gather(flat.layout, gradients))
    found = flat.read().buffers
    assert len(found) == flat.layout.buffer_count == sum(b.numel() for b in plain.buffers())
    if len(found):
        named = dict(plain.named_buffers())
        assert torch.equal(found, torch.cat([named[e.name].flatten() for e in flat.layout.buffers]))
    loss = nn.functional.cross_entropy(flat(x), y)
    before = flat.grads.clone()
    loss.backward()
    assert not torch.equal(flat.grads, before)  # added up in place, not replaced
    flat.check()
    flat.grads.zero_()
    assert all(p.grad is not None and not p.grad.any() for p in flat.module.parameters())


def test_what_is_written_to_one_shows_in_the_other() -> None:
    flat = flatten(Mixed())
    for entries, vector in ((flat.layout.params, flat.params), (flat.layout.buffers, flat.buffers)):
        vector.copy_(torch.arange(len(vector)))
        tensors = flat.module.state_dict()
        for entry in entries:
            expected = torch.arange(entry.start, entry.stop, dtype=torch.float32).view(entry.shape)
            assert torch.equal(tensors[entry.name], expected), entry.name
    with torch.no_grad():
        flat.module.get_parameter("last.bias").fill_(-1)
        flat.module.get_buffer("scale").fill_(-2)
    assert (flat.params == -1).sum() == 2 and (flat.buffers == -2).sum() == 1


def test_read_is_a_copy_and_write_brings_it_back() -> None:
    flat, (x, y) = flatten(made("resnet18", "batch")), batch()
    kept = flat.read()
    learn(flat.module, x, y)
    flat.params.sub_(flat.grads)
    changed = flat.read()
    assert not torch.equal(kept.params, changed.params) and not torch.equal(kept.buffers, changed.buffers)
    flat.write(kept)
    flat.check()
    assert torch.equal(flat.params, kept.params) and torch.equal(flat.buffers, kept.buffers)
    flat.params.zero_()
    assert kept.params.any()


def test_autocast_computes_in_bfloat16_and_keeps_state_and_logits_in_float32() -> None:
    module = made("resnet18", "group", torch.float32)
    x = batch()[0].float()
    wide = flatten(copy.deepcopy(module))(x)
    flat = FlatModel(module, Layout.of(module), torch.bfloat16)
    narrow = flat(x)
    assert narrow.dtype == flat.params.dtype == torch.float32
    assert not torch.equal(narrow, wide) and torch.allclose(narrow, wide, atol=0.1)
    assert torch.equal(narrow, narrow.bfloat16().float())


# ---- what tears tensors off ----


def swap_buffer(module: nn.Module) -> None:
    module.get_submodule("norm").register_buffer("running_mean", torch.zeros(4))


def swap_grad(module: nn.Module) -> None:
    grad = module.get_parameter("last.weight").grad
    assert grad is not None
    module.get_parameter("last.weight").grad = grad.clone()


def swap_data(module: nn.Module) -> None:
    module.get_parameter("first.bias").data = torch.zeros(4)


TEARS: dict[str, Callable[[nn.Module], object]] = {
    "zero_grad": lambda module: module.zero_grad(set_to_none=True),
    "load_state_dict": lambda module: module.load_state_dict(
        {name: value.clone() for name, value in module.state_dict().items()}, assign=True
    ),
    "to": lambda module: module.to(torch.float64),
    "buffer": swap_buffer,
    "grad": swap_grad,
    "data": swap_data,
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_check_finds_what_was_torn_off(tear: Callable[[nn.Module], object]) -> None:
    flat = flatten(Mixed())
    flat.check()
    tear(flat.module)
    with pytest.raises(RuntimeError, match="detached from the model's flat vector"):
        flat.check()


def test_check_names_the_tensor() -> None:
    flat = flatten(Mixed())
    swap_buffer(flat.module)
    with pytest.raises(RuntimeError, match=r"^norm\.running_mean "):
        flat.check()


def test_what_works_in_place_tears_nothing() -> None:
    flat, other = flatten(Mixed()), Mixed()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.fill_(7)
    flat.module.load_state_dict(other.state_dict())
    flat.module.to(torch.float32).zero_grad(set_to_none=False)
    flat.module.eval()
    flat.module.train()
    flat.check()
    assert (flat.params == 7).all() and (flat.buffers == 7).all()


def test_a_model_without_buffers() -> None:
    flat = flatten(nn.Linear(2, 2))
    assert flat.buffers.shape == (0,) and flat.buffers.dtype == flat.params.dtype
    flat.write(flat.read())
    flat.check()


# ---- the layout ----


@every_model
def test_parameters_lie_end_to_end_by_kind_in_the_models_order(name: str, norm: str) -> None:
    module = made(name, norm)
    layout = Layout.of(module)
    kind, order = kinds(module), [key for key, _ in module.named_parameters()]
    assert [e.name for e in layout.params] == sorted(order, key=lambda n: (kind[n], order.index(n)))
    assert all(e.kind == kind[e.name] for e in layout.params)
    assert all(e.shape == tuple(module.get_parameter(e.name).shape) for e in layout.params)
    assert layout.params[0].start == 0
    assert all(one.stop == two.start for one, two in pairwise(layout.params))
    assert layout.count == sum(p.numel() for p in module.parameters())


@every_model
def test_segments_cover_the_vector_one_a_kind(name: str, norm: str) -> None:
    layout = Layout.of(made(name, norm))
    segments = layout.segments
    assert [k for k, _ in segments] == sorted({e.kind for e in layout.params})
    bounds = [(s.start, s.stop) for _, s in segments]
    assert bounds[0][0] == 0 and bounds[-1][1] == layout.count
    assert all(one[1] == two[0] for one, two in pairwise(bounds))
    for entry in layout.params:
        start, stop = bounds[[k for k, _ in segments].index(entry.kind)]
        assert start <= entry.start and entry.stop <= stop


def test_integer_buffers_have_no_place() -> None:
    module = Mixed()
    layout = Layout.of(module)
    assert [e.name for e in layout.buffers] == ["scale", "norm.running_mean", "norm.running_var"]
    assert [(e.start, e.stop) for e in layout.buffers] == [(0, 1), (1, 5), (5, 9)]
    assert layout.buffer_count == 9
    flat = FlatModel(module, layout)
    flat(torch.randn(5, 3))
    assert int(flat.module.get_buffer("norm.num_batches_tracked")) == 1  # left alone, and counting
    flat.check()


def test_the_layout_does_not_depend_on_weights_or_dtype() -> None:
    one = Layout.of(build("resnet18", SHAPE, 3, 4, Group(), seed=1), "x")
    two = Layout.of(build("resnet18", SHAPE, 3, 4, Group(), seed=2).double(), "x")
    assert one == two and one.digest == two.digest


def test_the_digest_is_this_one_on_every_machine() -> None:
    layout = Layout((Entry("a", (2, 3), "weight", 0),), (Entry("b", (), "buffer", 0),), "norm=x")
    text = '[[[["a", [2, 3], "weight"]], [["b", [], "buffer"]]], "norm=x"]'
    assert layout.digest == hashlib.sha256(text.encode()).hexdigest()


CHANGES: dict[str, Callable[[Layout], Layout]] = {
    "name": lambda it: replace(it, params=(replace(it.params[0], name="other"), *it.params[1:])),
    "shape": lambda it: replace(it, params=(replace(it.params[0], shape=(2, 2)), *it.params[1:])),
    "kind": lambda it: replace(it, params=(replace(it.params[0], kind="scalar"), *it.params[1:])),
    "order": lambda it: replace(it, params=it.params[::-1]),
    "buffer": lambda it: replace(it, buffers=it.buffers[1:]),
    "side": lambda it: replace(it, params=it.params + it.buffers, buffers=()),
    "fingerprint": lambda it: replace(it, fingerprint="groups=8"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_digest_sees_every_difference(change: Callable[[Layout], Layout]) -> None:
    layout = Layout.of(Mixed(), "groups=4")
    assert change(layout).digest != layout.digest


# ---- state and mean ----


def test_a_states_digest_sees_every_bit() -> None:
    layout = Layout.of(Mixed())
    state = FlatModel(Mixed(), layout).read()
    kept, first = state.clone(), state.digest(layout)
    assert state.digest(replace(layout, fingerprint="x")) != first
    for tensor in (state.params, state.buffers):
        found = set()
        for value in (1.5, 0.0, -0.0):
            tensor[3] = value
            found.add(state.digest(layout))
        assert len(found) == 3
    assert kept.digest(layout) == first  # a clone shares nothing


def test_mean_is_the_weighted_mean() -> None:
    states = [State(torch.randn(7, dtype=torch.float64), torch.randn(2).double()) for _ in range(4)]
    kept = [state.clone() for state in states]
    weights = [1, 32, 0.5, 7]
    mean = Mean(states[0])
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    value = mean.value()
    for part in ("params", "buffers"):
        parts = torch.stack([getattr(state, part) for state in states])
        expected = (torch.tensor(weights).double()[:, None] * parts).sum(0) / sum(weights)
        assert torch.allclose(getattr(value, part), expected, rtol=1e-14)
        assert all(torch.equal(getattr(a, part), getattr(b, part)) for a, b in zip(states, kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25, 0.0])
@pytest.mark.parametrize("count", [0, 1, 5, 1023, 1024, 1025, 5000, 100_003])
def test_length_is_the_norm_in_float64(count: int, scale: float, dtype: torch.dtype) -> None:
    vector = torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(count)) * scale
    expected = float(vector.double().norm())
    assert abs(length(vector) - expected) <= (1e-13 if dtype == torch.float64 else 1e-6) * expected


@pytest.mark.parametrize("fault", [math.inf, -math.inf, math.nan])
def test_length_of_what_is_not_finite(fault: float) -> None:
    vector = torch.ones(3000)
    vector[1234] = fault
    assert str(length(vector)) == str(abs(fault))


def test_length_is_the_same_wherever_a_vector_lies() -> None:
    room, vector = torch.zeros(5011), torch.randn(5003, generator=torch.Generator().manual_seed(0))
    assert len({length(room[at : at + 5003].copy_(vector)) for at in range(8)}) == 1


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no updates"):
        Mean(State(torch.zeros(1), torch.zeros(0))).value()


@pytest.mark.parametrize("name", ["empty", "frozen"])
def test_a_model_with_nothing_to_train_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "from torch import nn",
        "def empty(shape, classes): return nn.Flatten()",
        "def frozen(shape, classes): return nn.Linear(4, classes).requires_grad_(False)",
    ]
    (tmp_path / "still_models_of_test.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    with pytest.raises(EdgewiseError, match="has nothing to train"):
        build(f"still_models_of_test:{name}", SHAPE, 3, 4, Group(), seed=0)


def test_every_listed_model_is_covered() -> None:
    assert {name for name, _ in EVERY_MODEL} == set(MODELS)
