"""Devices that take their steps side by side: each is what it is alone, and the rule for when they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgewise import codecs, records, specs
from edgewise.aggregators import AGGREGATORS
from edgewise.algorithms import FedAvg, FedProx, SyncSGD
from edgewise.assemble import Parts, assemble
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.data.batches import Augment
from edgewise.device import Task
from edgewise.engines import Batched, Inline, batched
from edgewise.errors import Diverged, EdgewiseError
from edgewise.memories import Memories
from edgewise.models import MODELS, build
from edgewise.models.heads import HEADS
from edgewise.models.norms import NORMS
from edgewise.objectives import CrossEntropy, SquaredError
from edgewise.optimizers import SGD
from edgewise.rounds import run
from edgewise.schedules import Cosine
from edgewise.vector import State

Shape = tuple[int, int, int]
DEVICES, SHAPE = 9, (1, 8, 8)
AVERAGED = FedAvg(SGD(0.05), sync_every=3)
pytestmark = pytest.mark.filterwarnings("ignore::edgewise.errors.EdgewiseWarning")


def linear(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def perceptron(shape: Shape, classes: int) -> nn.Module:
    """Wider than `Narrow` turns round, with a norm, a fixed layer and weights that nothing reads."""
    module = nn.Sequential(
        *(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 40), nn.LayerNorm(40), nn.ReLU()),
        *(nn.Linear(40, 8, bias=False), nn.Tanh(), nn.Linear(8, classes)),
    )
    module[4].weight.requires_grad_(False)
    module.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return module


def convolutional(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(36, classes),
    )


def dropping(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(shape[0] * shape[1] * shape[2], classes))


class Branching(nn.Module):
    """What it does depends on the numbers, which no map can follow."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.layer = linear(shape, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found * 2 if found.sum() > 0 else found


class Hiding(nn.Module):
    """It reaches its weights by another way than their names."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, shape[0] * shape[1] * shape[2]))
        self.hidden = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.hidden[0].t()


class Own(nn.Module):
    """A last layer that stays on the device."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(shape[0] * shape[1] * shape[2], 8)
        self.head = OwnLinear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x.flatten(1))))


class OwnLinear(nn.Linear):
    def parameter_kind(self, name: str) -> str:
        return "local"


@dataclass(frozen=True)
class Otherwise(FedAvg):
    """Someone's own."""


def large(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5000), nn.Linear(5000, classes))


@pytest.fixture(scope="module")
def specks() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (99, *SHAPE), dtype=torch.uint8, generator=generator)
    labels, targets = torch.arange(99) % 3, torch.rand(99, 3, generator=generator)
    return Dataset.of(
        "specks",
        train=(images[:90], labels[:90]),
        test=(images[90:], labels[90:]),
        targets=(targets[:90], targets[90:]),
    )


@pytest.fixture(scope="module")
def spots(specks: Dataset) -> Dataset:
    """The same with labels alone."""
    splits = {name: replace(getattr(specks, name), targets=None) for name in ("train", "test")}
    return replace(specks, **splits)


def config(model: str = "linear", **settings: Any) -> Config:
    plain = Config(
        model=model if model in MODELS else f"{__name__}:{model}",
        algorithm=AVERAGED,
        devices=DEVICES,
        batch=4,
        steps=9,
        augment=Augment(),
        precision="fp64",
        eval_every=0,
        fused="on",
    )
    return replace(plain, **settings)


def states(parts: Parts, together: int, rounds: int = 3) -> list[tuple[Any, ...]]:
    """What the devices of every round send, one after another (0) or side by side, and what they keep."""
    memories, found = Memories(), []
    work = (parts.devices, parts.model, parts.work, memories)
    engine = Batched(*work, together=together) if together else Inline(*work)
    state, layout = parts.model.read(), parts.model.layout
    for round in range(1, rounds + 1):
        cohort = [device for device in range(DEVICES) if (device + round) % 3]
        total = torch.zeros_like(state.params)
        for reply in engine.ask(Task(round, 3, 0.5, state), cohort):
            update = reply.update(parts.work.codec, layout, torch.float64)
            found.append((reply.devices, reply.examples, reply.losses[0], update))
            total += update
        memories.commit(cohort)
        found += [(device, memories[device].step, 0.0, torch.zeros(0)) for device in cohort]
        state = State(state.params + total / len(cohort), state.buffers)
    return found


def assert_alike(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> None:
    for mine, its in zip(one, other, strict=True):
        assert mine[:2] == its[:2]
        assert mine[2] == pytest.approx(its[2], rel=1e-12)
        assert torch.allclose(mine[3], its[3], rtol=1e-10, atol=1e-12)


SETTINGS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"algorithm": FedAvg(SGD(0.05, nesterov=True, weight_decay=0.1), sync_every=3)},
    "no momentum": {"algorithm": FedAvg(SGD(0.05, momentum=0), sync_every=3)},
    "weights alone decay": {"algorithm": FedAvg(SGD(0.05, weight_decay=0.3, decay="weights"), sync_every=3)},
    "augmented": {"augment": Augment.parse("crop:1,flip,cutout:3")},
    "mixup": {"augment": Augment.parse("mixup:0.4")},
    "smoothed": {"objective": CrossEntropy(0.2)},
    "batches that wrap": {"batch": 16},
    **{name: {"codec": codecs.parse(name)} for name in ("none:zstd", "topk:0.1", "int8", "powersgd:1")},
}


@pytest.mark.parametrize("together", [1, 2, 4, DEVICES])
@pytest.mark.parametrize("model", ["linear", "perceptron", "convolutional"])
def test_every_device_is_what_it_is_alone(spots: Dataset, model: str, together: int) -> None:
    parts = assemble(config(model), spots)
    assert_alike(states(parts, together), states(parts, 0))


@pytest.mark.parametrize("name", SETTINGS)
def test_so_it_is_with_every_setting(spots: Dataset, name: str) -> None:
    parts = assemble(config("perceptron", **SETTINGS[name]), spots)
    assert_alike(states(parts, 4), states(parts, 0))


def test_so_it_is_with_targets(specks: Dataset) -> None:
    parts = assemble(config("perceptron", objective=SquaredError()), specks)
    assert_alike(states(parts, 4), states(parts, 0))


def buffered(norm: str) -> bool:
    return any(True for _ in build("resnet18", SHAPE, 3, 2, NORMS[norm](), 0).buffers())


# Without `instance`, which sees one pixel in the end: there, what is rounded otherwise grows.
UNBUFFERED = [name for name in NORMS if name != "instance" and not buffered(name)]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("norm", UNBUFFERED)
def test_so_it_is_with_every_norm_and_head(spots: Dataset, norm: str, head: str) -> None:
    settings = {"norm": NORMS[norm](), "head": HEADS[head](), "width": 2}
    parts = assemble(config("resnet18", **settings), spots)
    assert_alike(states(parts, 4, 1), states(parts, 0, 1))


RULES = ["mean", "median", "trimmed:0.2", "krum:1", "multi-krum:1", "clip:0.1", "clip-median", "fedexp"]


def test_every_rule_is_covered() -> None:
    assert {rule.partition(":")[0] for rule in RULES} == AGGREGATORS.keys()


@pytest.mark.parametrize("rule", RULES)
def test_a_run_ends_where_the_loop_s_does_and_resumes(spots: Dataset, rule: str, tmp_path: Path) -> None:
    aggregate = specs.parse(AGGREGATORS, rule, "aggregate")
    ours = config("perceptron", cohort=0.7, aggregate=aggregate, schedule=Cosine())
    for name, one in {"together": ours, "apart": replace(ours, fused="off")}.items():
        list(run(one, tmp_path / name, dataset=spots))
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("together", "apart")]
    assert all(torch.allclose(ends[0][key], ends[1][key], rtol=1e-10) for key in ends[0])
    rows = [records.rows(tmp_path / name) for name in ("together", "apart")]
    for one, other in zip(*rows, strict=True):
        mine, its = ({k: v for k, v in row.items() if k not in ("seconds", "probe")} for row in (one, other))
        assert mine == {name: pytest.approx(value, rel=1e-5) for name, value in its.items()}
    next(run(ours, tmp_path / "cut", dataset=spots)).round  # noqa: B018
    list(run(ours, tmp_path / "cut", dataset=spots, resume=True))
    digests = [(records.summary(tmp_path / name) or {})["model_digest"] for name in ("together", "cut")]
    assert digests[0] == digests[1]


def test_a_device_that_diverges_is_named(spots: Dataset, tmp_path: Path) -> None:
    wild = config("linear", algorithm=FedAvg(SGD(1e9, weight_decay=1e9), sync_every=30), steps=30)
    with pytest.raises(Diverged, match=r"^round 1, device 0: the loss is nan"):
        list(run(wild, tmp_path, dataset=spots))


# ---- when ----


@pytest.mark.parametrize(
    ("model", "settings", "chosen"),
    [
        ("linear", {}, "on"),
        ("perceptron", {"cohort": 0.5}, "on"),
        ("linear", {"cohort": 0.3}, "off"),  # three devices
        ("convolutional", {}, "off"),
        ("dropping", {}, "off"),  # what each device drops is drawn as it comes
        ("Branching", {}, "off"),
        ("Hiding", {}, "off"),
        ("Own", {}, "off"),
        ("linear", {"algorithm": Otherwise(SGD(0.1), sync_every=3)}, "off"),
        ("large", {}, "off"),
        ("linear", {"algorithm": FedAvg(SGD(0.1), sync_every=3, parts=(FedProx(),))}, "off"),
        ("linear", {"algorithm": FedAvg(SGD(0.1), sync_every=3, local_momentum="keep")}, "off"),
        ("linear", {"algorithm": FedAvg(SGD(0.1), local_epochs=1.0)}, "off"),
        ("linear", {"algorithm": FedAvg(SGD(0.1, agc=0.1), sync_every=3)}, "off"),
        ("linear", {"engine": "torchrun", "processes": "1"}, "on"),
        ("linear", {"engine": "fleet"}, "off"),
        ("linear", {"algorithm": SyncSGD(SGD(0.1))}, "on"),  # one gradient for all
    ],
    ids=str,
)
def test_the_rule(spots: Dataset, model: str, settings: dict[str, Any], chosen: str) -> None:
    torch.manual_seed(5)
    plain = assemble(config(model, fused="off", **settings), spots)
    before = torch.random.get_rng_state()
    torch.manual_seed(5)
    parts = assemble(config(model, fused="auto", **settings), spots)
    assert parts.config.fused == chosen
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing is left of what was tried
    assert torch.equal(parts.model.params, plain.model.params) and not parts.model.grads.any()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"algorithm": FedAvg(SGD(0.1), parts=(FedProx(),))}, "only plain fedavg's devices can"),
        ({"algorithm": FedAvg(SGD(0.1), local_epochs=1.0)}, "devices take unequal numbers of steps"),
        ({"algorithm": FedAvg(SGD(0.1, agc=0.1))}, "agc clips the gradients of one model"),
        ({"model": "resnet18", "norm": NORMS["batch"](), "width": 2}, "the model has buffers"),
        ({"precision": "bf16"}, "bf16 is for one model at a time"),
        ({"engine": "fleet"}, "the devices of a fleet are apart"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(spots: Dataset, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(EdgewiseError, match=f"^fused: cannot be on: {reason}"):
        assemble(config(**settings), spots)


def test_a_model_that_no_map_can_follow_is_said(spots: Dataset) -> None:
    with pytest.raises(EdgewiseError, match=r"^fused: cannot be on: the model cannot be mapped over devices"):
        assemble(config("Branching"), spots)


def test_as_many_train_at_once_as_stay_in_the_cache(spots: Dataset) -> None:
    model = assemble(config("linear"), spots).model
    assert batched.together(model, 256, 5) == 5
    most = batched.ROOM // model.params.nbytes
    assert batched.together(model, 256, 10**6) == most and most * model.params.nbytes <= batched.ROOM
    assert batched.together(model, batched.BATCHES // 3, 10**6) == 3
    assert batched.together(model, 2 * batched.BATCHES, 10**6) == 1


def test_few_matrices_are_kept(spots: Dataset) -> None:
    parts = assemble(config("linear"), spots)
    engine = Batched(parts.devices, parts.model, parts.work, Memories(), together=4)
    for round, count in enumerate((9, 7, 6, 5, 8), 1):
        list(engine.ask(Task(round, 1, 1.0, parts.model.read()), range(count)))
    assert set(engine._rows) <= {1, 2, 3, 4} and len(engine._rows) <= 2
