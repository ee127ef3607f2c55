"""Engines: every way of asking gives the replies of the inline loop, and a device's memory is its own.

At float64 on a skewed split. What the loop itself gives is held to plain PyTorch in tests/test_exact.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgewise import data, records, rounds, specs
from edgewise.algorithms import ALGORITHMS, FedAvg, SyncSGD, reads_updates
from edgewise.assemble import Parts, assemble
from edgewise.codecs import CODECS
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.data.batches import Augment
from edgewise.data.partition import Labels
from edgewise.device import Memory, Reply, Task
from edgewise.engines import Engine, Fused, Inline
from edgewise.engines.torchrun.lead import Ranks
from edgewise.errors import EdgewiseError
from edgewise.intake import Pooled
from edgewise.memories import Memories
from edgewise.models import MODELS
from edgewise.models.norms import NORMS, DeviceBatchNorm2d
from edgewise.objectives import CrossEntropy
from edgewise.optimizers import SGD
from edgewise.vector import Mean, State

DEVICES, SIZE = 10, 6
PLAIN = ("sync-sgd", "fedavg")
APART = ("batch-renorm", "batch-local")  # norms that keep devices' batches apart
BOTH = [("resnet18", norm) for norm in NORMS if norm not in ("batch-sync", *APART)] + [
    ("fixup-resnet18", "none")
]
both_ways = pytest.mark.parametrize(("model", "norm"), BOTH)
every_together = pytest.mark.parametrize("together", [1, 2, 3, 0])  # 3: the last of ten is alone


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


def config(model: str = "resnet18", norm: str = "group", **settings: object) -> Config:
    plain = Config(
        partition=Labels(2),
        model=model,
        width=4,
        norm=NORMS[norm](),
        algorithm=SyncSGD(SGD(0.05)),
        devices=DEVICES,
        batch=SIZE,
        steps=3,
        augment=Augment.parse("crop:1,flip"),
        precision="fp64",
        eval_every=0,
        fused="off",
    )
    return replace(plain, **settings)


def remembering(steps: dict[int, int] | None) -> Memories:
    """What devices remember that stand at these places, with nothing owed."""
    return Memories({"steps": steps or {}, "filed": []})


def inline(parts: Parts, steps: dict[int, int] | None = None) -> Inline:
    return Inline(parts.devices, parts.model, parts.work, remembering(steps))


def fused(parts: Parts, together: int, steps: dict[int, int] | None = None) -> Fused:
    memories = remembering(steps)
    return Fused(parts.devices, parts.model, parts.work, memories, together=together)


def somewhere(parts: Parts) -> State:
    """Off the start: Fixup's zeros hide its gradient there, and fresh running statistics hide mistakes."""
    state, generator = parts.model.read(), torch.Generator().manual_seed(1)
    for vector in (state.params, state.buffers):
        vector.add_(torch.rand(len(vector), generator=generator).double() - 0.3, alpha=0.1)
    return state


def task_at(parts: Parts, state: State, number: int = 1) -> Task:
    return Task(number, parts.config.algorithm.sync_every, 1.0, state)


def combined(parts: Parts, replies: Sequence[Reply]) -> tuple[State, list[float]]:
    mean, losses = Mean(parts.model.read()), []
    for reply in replies:
        update = reply.update(parts.config.codec, parts.model.layout, torch.float64)
        mean.add(State(update, reply.buffers), reply.examples)
        losses += reply.losses
    return mean.value(), losses


def same(one: Reply | Pooled, two: Reply | Pooled) -> bool:
    """Bit for bit."""
    if isinstance(one, Pooled):
        pairs = ((one.mean.params, two.mean.params), (one.mean.buffers, two.mean.buffers))
        return replace(one, mean=two.mean, sight=two.sight) == two and all(torch.equal(*p) for p in pairs)
    return replace(one, buffers=two.buffers) == two and torch.equal(one.buffers, two.buffers)


# ---- fused is the loop ----


@both_ways
@every_together
@pytest.mark.parametrize("cohort", [range(DEVICES), (1, 4, 5, 8)], ids=["all", "some"])
def test_fused_gives_what_the_loop_gives(
    digits: Dataset, model: str, norm: str, together: int, cohort: Sequence[int]
) -> None:
    parts = assemble(config(model, norm), digits)
    state, places = somewhere(parts), {device: 3 * device for device in range(DEVICES)}
    kept = state.clone()
    loop, fast = inline(parts, places), fused(parts, together, places)
    task = task_at(parts, state)
    apart, joined = list(loop.ask(task, cohort)), list(fast.ask(task, cohort))
    (expected, losses), (found, found_losses) = combined(parts, apart), combined(parts, joined)
    assert torch.allclose(found.params, expected.params, rtol=0, atol=1e-10)
    assert torch.allclose(found.buffers, expected.buffers, rtol=0, atol=1e-12)
    assert found_losses == pytest.approx(losses, abs=1e-12)
    assert norm != "batch" or (expected.buffers - state.buffers).abs().max() > 1e-3
    assert torch.equal(state.params, kept.params) and torch.equal(state.buffers, kept.buffers)
    assert sum(r.examples for r in joined) == sum(r.examples for r in apart)
    assert [r.bytes_each for r in joined for _ in r.devices] == [r.bytes_each for r in apart]
    assert [d for r in joined for d in r.devices] == [d for r in apart for d in r.devices] == list(cohort)
    for engine in (loop, fast):
        engine.memories.commit(cohort)
    assert loop.memories.steps() == fast.memories.steps()
    parts.model.check()


@pytest.mark.parametrize(
    ("model", "norm", "size", "together"),
    [
        *((*pair, 20, 3) for pair in BOTH),
        *(("resnet18", "batch", *pair) for pair in [(64, 1), (32, 2), (6, 10)]),
    ],
)
def test_fused_runs_end_where_the_loop_ends(
    digits: Dataset, tmp_path: Path, model: str, norm: str, size: int, together: int
) -> None:
    """Weights and running statistics after whole runs, with momentum and a sampled cohort."""
    ends, rows = [], []
    for fused in ("off", "on"):
        cfg = config(model, norm, batch=size, fused=fused, cohort=7)
        rows.append(list(rounds.run(cfg, tmp_path / fused, dataset=digits)))
        ends.append(load_file(tmp_path / fused / records.MODEL))
    engine = assemble(cfg, digits).engine()
    assert isinstance(engine, Fused) and engine.together == together
    assert_close(ends[1], ends[0])
    for one, two in zip(*rows, strict=True):
        for name in ("examples_seen", "bytes_up", "bytes_down", "bytes_up_each", "bytes_down_each"):
            assert getattr(one, name) == getattr(two, name)
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-10)


RECIPES: dict[str, dict[str, Any]] = {
    "nesterov": {"sgd": SGD(0.05, nesterov=True)},
    "agc": {"sgd": SGD(0.5, agc=0.001)},
    "decay": {"sgd": SGD(0.05, weight_decay=0.1, decay="weights")},
    "smoothing": {"objective": CrossEntropy(0.1)},
    "mixup": {"augment": Augment(crop=1, flip=True, mixup=0.4), "objective": CrossEntropy(0.1)},
    "ema": {"ema": 0.5},
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("model", "norm"), [("resnet18", "batch"), ("fixup-resnet18", "none")])
def test_recipes_fused_are_those_of_the_loop(
    digits: Dataset, tmp_path: Path, name: str, model: str, norm: str
) -> None:
    """And each of them changes what comes out."""
    recipe = dict(RECIPES[name])
    algorithm = SyncSGD(recipe.pop("sgd", SGD(0.05)))
    cfg = config(model, norm, algorithm=algorithm, **recipe)
    plain = config(model, norm, fused="on")
    ends = []
    for number, one in enumerate((cfg, replace(cfg, fused="on"), plain)):
        list(rounds.run(one, tmp_path / str(number), dataset=digits))
        ends.append(load_file(tmp_path / str(number) / records.MODEL))
    assert_close(ends[1], ends[0])
    assert any((ends[1][key] - ends[2][key]).abs().max() > 1e-6 for key in ends[1])


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-10), name


def test_fused_leaves_batch_norms_ready_for_one_device(digits: Dataset) -> None:
    parts = assemble(config(norm="batch"), digits)
    state = parts.model.read()
    list(fused(parts, 0).ask(task_at(parts, state), range(DEVICES)))
    layers = [m for m in parts.model.module.modules() if isinstance(m, DeviceBatchNorm2d)]
    assert layers and all(layer.devices == 1 for layer in layers)
    broken = State(state.params, state.buffers)
    parts.devices[4] = replace(parts.devices[4], indices=torch.tensor([10**6]))
    with pytest.raises(IndexError):
        list(fused(parts, 0).ask(task_at(parts, broken), range(DEVICES)))
    assert all(layer.devices == 1 for layer in layers)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"fused": "auto"}, Fused),
        ({"fused": "on"}, Fused),
        ({"fused": "off"}, Inline),
        ({"fused": "auto", "algorithm": FedAvg()}, Inline),
    ],
)
def test_the_engine_is_chosen_once_and_written_down(
    digits: Dataset, settings: dict[str, object], kind: type[Engine]
) -> None:
    parts = assemble(config(**settings), digits)
    assert type(parts.engine()) is kind
    assert parts.config.fused == ("on" if kind is Fused else "off")


def test_batch_sync_sees_all_devices_at_once(digits: Dataset) -> None:
    engine = assemble(config(norm="batch-sync", batch=64, fused="auto"), digits).engine()
    assert isinstance(engine, Fused) and engine.together == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fused": "on", "algorithm": FedAvg(local_epochs=1.0)}, "fused: cannot be on"),
        ({"norm": "batch-sync", "fused": "off"}, "lockstep.*fused is off"),
        ({"norm": "batch-sync", "fused": "auto", "algorithm": FedAvg()}, "lockstep.*several steps"),
    ],
)
def test_what_would_not_be_exact_is_refused(digits: Dataset, settings: dict[str, object], says: str) -> None:
    norm = str(settings.pop("norm", "group"))
    with pytest.raises(EdgewiseError, match=says):
        assemble(config(norm=norm, **settings), digits)


# ---- memory: proposed by a reply, changed by a commit ----

ENGINES = {
    "inline": lambda parts, steps: inline(parts, steps),
    "fused": lambda parts, steps: fused(parts, 3, steps),
    "fedavg": lambda parts, steps: inline(parts, steps),
}
every_engine = pytest.mark.parametrize("name", [*ENGINES, "ranks", "ranks fedavg"])
Make = Callable[[Parts, dict[int, int] | None], Any]


@pytest.fixture
def make(name: str, request: pytest.FixtureRequest) -> Make:
    """What makes the engine of a name; those of ranks take the two that all tests share."""
    if name in ENGINES:
        return ENGINES[name]
    pair = request.getfixturevalue("pair")
    return lambda parts, steps: Ranks(pair, parts, {"steps": steps or {}, "filed": []})


def places_of(engine: Any) -> dict[int, int]:
    """Every asked device's place in its data."""
    return dict(engine.memories.save()["steps"])


def parts_for(name: str, digits: Dataset) -> Parts:
    algorithm = FedAvg(SGD(0.05), sync_every=2) if "fedavg" in name else SyncSGD(SGD(0.05))
    return assemble(config(norm="batch", algorithm=algorithm, steps=8), digits)


@every_engine
def test_asking_twice_without_a_commit_gives_the_same_bits(digits: Dataset, name: str, make: Make) -> None:
    parts = parts_for(name, digits)
    task = task_at(parts, parts.model.read())
    engine = make(parts, None)
    first = list(engine.ask(task, range(DEVICES)))
    assert places_of(engine) == {}
    parts.model.params.fill_(7)  # whatever else the model was used for in between
    parts.model.grads.fill_(7)
    parts.model.buffers.fill_(7)
    second = list(engine.ask(task, range(DEVICES)))
    assert all(same(one, two) for one, two in zip(first, second, strict=True))
    engine.memories.commit(range(DEVICES))
    every = parts.config.algorithm.sync_every
    assert places_of(engine) == {device: every for device in range(DEVICES)}
    assert getattr(engine.memories, "pending", {}) == {}
    third = list(engine.ask(task, range(DEVICES)))
    assert not any(same(one, two) for one, two in zip(first, third, strict=True))


@every_engine
def test_a_device_that_is_not_asked_stays_where_it_is(digits: Dataset, name: str, make: Make) -> None:
    parts = parts_for(name, digits)
    every, state = parts.config.algorithm.sync_every, parts.model.read()
    engine = make(parts, {2: 10, 5: 20})
    for cohort in ((1, 2), (2, 7)):
        list(engine.ask(task_at(parts, state), cohort))
        engine.memories.commit(cohort)
    assert places_of(engine) == {1: every, 2: 10 + 2 * every, 5: 20, 7: every}


@every_engine
def test_resuming_at_a_place_gives_what_running_through_gives(digits: Dataset, name: str, make: Make) -> None:
    parts = parts_for(name, digits)
    state = parts.model.read()
    engine = make(parts, None)
    for number in range(3):
        through = list(engine.ask(task_at(parts, state, number), range(DEVICES)))
        places = places_of(engine)
        engine.memories.commit(range(DEVICES))
    resumed = make(parts, places)
    again = list(resumed.ask(task_at(parts, state, 2), range(DEVICES)))
    assert all(same(one, two) for one, two in zip(through, again, strict=True))


def test_an_answer_proposes_and_changes_nothing(digits: Dataset) -> None:
    parts = parts_for("fedavg", digits)
    task, memory = task_at(parts, parts.model.read()), Memory(5)
    state, kept = task.state, task.state.clone()
    device = parts.devices[3]
    reply, after = device.answer(task, parts.model, parts.work, memory)
    again, later = device.answer(task, parts.model, parts.work, memory)
    assert memory == Memory(5) and after == later == Memory(7)
    assert same(reply, again)
    assert reply.devices == (3,) and reply.examples == 2 * SIZE and len(reply.losses) == 1
    assert torch.equal(state.params, kept.params) and torch.equal(state.buffers, kept.buffers)
    parts.model.buffers.zero_()
    assert reply.buffers.any()  # a copy, not the model's own


def test_a_device_trains_on_the_batches_of_its_own_steps(digits: Dataset) -> None:
    parts = parts_for("fedavg", digits)
    device = parts.devices[6]
    found = list(device.batches(parts.feed, 5, 3))
    expected = [parts.feed.batch(6, device.indices, step) for step in (5, 6, 7)]
    assert len(found) == 3
    assert all(
        torch.equal(a, b) for f, e in zip(found, expected, strict=True) for a, b in zip(f, e, strict=True)
    )
    assert set(torch.cat([y for _, y in found]).tolist()) <= {2, 3}  # labels:2: device 6 shares with 1


# ---- every pair, not every product ----


def texts() -> list[str]:
    """A text of every codec, with a value where it has no default, and of a lossless stage."""
    needed = {name: [slot for slot in fields(CODECS[name]) if slot.default is MISSING] for name in CODECS}
    values = {int: "2", float: "0.1"}
    return ["none:zstd"] + [
        ":".join([name, *(values[specs.kind_of(slot)] for slot in slots)]) for name, slots in needed.items()
    ]


def pairs() -> set[tuple[str, str, str, str]]:
    """Every codec with every norm and model; further algorithms in tests/test_algorithms_pairs.py."""
    turns = cycle(ALGORITHMS)
    found = {("resnet18", norm, algorithm, "none") for norm in NORMS for algorithm in PLAIN}
    found |= {(model, "group", algorithm, "none") for model in MODELS for algorithm in PLAIN}
    for codec in texts():
        found |= {("resnet18", norm, next(turns), codec) for norm in NORMS if norm != "batch-sync"}
        found.add(("fixup-resnet18", "group", next(turns), codec))
    return found


@pytest.fixture(scope="module")
def specks() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) % 6
    return Dataset.of("specks", train=(images[:48], labels[:48]), test=(images[48:], labels[48:]))


def shared(cfg: Config) -> bool:
    """Whether devices can share a pass: one gradient, or steps side by side where there are no buffers."""
    norm = next(name for name, kind in NORMS.items() if type(cfg.norm) is kind)
    if cfg.algorithm.sends_gradients:
        return cfg.codec == CODECS["none"]() and norm not in APART
    assert isinstance(cfg.algorithm, FedAvg)
    return not cfg.algorithm.parts and ("batch" not in norm or cfg.model == "fixup-resnet18")


@pytest.mark.parametrize("fused", ["off", "on"])
@pytest.mark.parametrize("pair", sorted(pairs()), ids=" ".join)
def test_every_pair_runs_two_rounds_or_is_refused(
    specks: Dataset, tmp_path: Path, pair: tuple[str, ...], fused: str
) -> None:
    flat = dict(zip(("model", "norm", "algorithm", "codec"), pair, strict=True))
    sizes = {"devices": 2, "partition": "labels:3", "width": 4, "batch": 4, "lr": 0.01}
    every = min(2, ALGORITHMS[flat["algorithm"]].sync_every)
    given = {**flat, **sizes, "fused": fused, "sync_every": every, "steps": 2 * every}
    if flat["codec"].startswith("dgc") and reads_updates(ALGORITHMS[flat["algorithm"]]):
        with pytest.raises(EdgewiseError, match=r"^codec: dgc sends no updates"):
            Config.of(given)
        return
    cfg = Config.of(given)
    local, exact = flat["norm"] == "batch-local", shared(cfg)
    if local and cfg.algorithm.sends_gradients and flat["codec"].startswith("dgc"):
        with pytest.raises(EdgewiseError, match=r"^(fused|codec): "):
            assemble(cfg, specks)
        return
    if (fused == "on" and not exact) or (fused == "off" and flat["norm"] == "batch-sync"):
        with pytest.raises(EdgewiseError, match=r"^(fused|norm): "):
            assemble(cfg, specks)
        return
    first, last = rounds.run(cfg, tmp_path / "run", dataset=specks)
    assert math.isfinite(first.train_loss) and math.isfinite(last.train_loss)
    assert last.accuracy is not None and last.loss is not None
    layers = assemble(cfg, specks).model.module.state_dict()
    end = load_file(tmp_path / "run" / records.MODEL)
    assert all(tensor.isfinite().all() for tensor in end.values())
    still = {name for name, tensor in end.items() if torch.equal(tensor, layers[name])}
    if local:  # norms are the devices' own
        layout = assemble(cfg, specks).model.layout
        own = {e.name for e in (*layout.params, *layout.buffers) if e.kind == "local"}
        assert own and own <= still
        still -= own
    # A sparse codec may leave a short vector as it was; and Fixup's zeros hide what lies behind them.
    assert not still or (cfg.codec.lossless, flat["model"]) != (True, "resnet18"), still
    assert len(still) < len(end)
