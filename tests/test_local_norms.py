"""Norms that stay on their device (batch-local): nothing of them leaves it, the coordinator leaves them

alone, and each device is judged with its own.

The reference is FedBN in plain PyTorch: a model a device, of which all but the batch norms are averaged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from edgewise import records
from edgewise.algorithms import ALGORITHMS, Own
from edgewise.assemble import Parts, assemble
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.device import Memory, Task, enter
from edgewise.errors import EdgewiseError
from edgewise.evaluate import Apart, evaluate
from edgewise.exports import export
from edgewise.inspection import inspect
from edgewise.memories import Memories
from edgewise.models.norms import Norm
from edgewise.ongoing import ongoing
from edgewise.refit import refit
from edgewise.rounds import run
from edgewise.vector import State

SHAPE, CLASSES, DEVICES = (1, 4, 4), 6, 3
TINY = f"{__name__}:tiny"
MOMENTUM, DECAY, LR = 0.9, 0.01, 0.05


def tiny(shape: tuple[int, int, int], classes: int, norm: Norm) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), norm.layer(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2, classes)
    )


def plain(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A model of somebody's own, with a batch norm in it."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2, classes)
    )


def bare(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


@pytest.fixture(scope="module")
def specks() -> Dataset:
    draws = torch.Generator().manual_seed(1)
    labels = torch.arange(72) % CLASSES
    centres = torch.randint(0, 200, (CLASSES, *SHAPE), generator=draws)
    images = (centres[labels] + torch.randint(0, 56, (72, *SHAPE), generator=draws)).to(torch.uint8)
    return Dataset.of("specks", train=(images[:48], labels[:48]), test=(images[48:], labels[48:]))


def config(algorithm: str = "fedavg", **flat: object) -> Config:
    """Three devices with two classes each, which take two steps a round, or one with sync-sgd."""
    every = 1 if algorithm == "sync-sgd" else 2
    given = {"model": TINY, "norm": "batch-local", "devices": DEVICES, "partition": "labels:2", "batch": 4}
    given |= {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "precision": "fp64"}
    given |= {"algorithm": algorithm, "sync_every": every, "steps": 3 * every, "eval_every": 1}
    return Config.of(given | flat)


def trained(asked: Config, specks: Dataset, out: Path) -> tuple[Parts, list[State], State]:
    """A run's parts, the state of every device's model when it has ended, and the coordinator's."""
    list(run(asked, out, dataset=specks))
    parts = assemble(asked, specks)
    note = records.Checkpoint.load(out / records.CHECKPOINT).note["memories"]
    memories, end = Memories(note, out / records.MEMORIES), load_file(out / records.MODEL)
    layout = parts.model.layout
    shared = State(
        *(torch.cat([end[e.name].flatten() for e in part]) for part in (layout.params, layout.buffers))
    )
    states = []
    for device in range(asked.devices):
        enter(parts.model, shared, memories[device].local)
        states.append(parts.model.read())
    return parts, states, shared


# ---- FedBN in plain PyTorch ----


def modules(parts: Parts) -> list[nn.Module]:
    """A model in plain PyTorch for every device, all with the run's initial weights."""
    made = plain(SHAPE, CLASSES).double()
    made.load_state_dict({**made.state_dict(), **parts.model.module.state_dict()})
    return [copy.deepcopy(made).train() for _ in range(DEVICES)]


def batch(parts: Parts, device: int, step: int) -> tuple[Tensor, Tensor]:
    return parts.work.feed.batch(device, parts.devices[device].indices, step)


def local(name: str) -> bool:
    return name.startswith("1.")


def average(nets: list[nn.Module], of: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
    found = [of(net) for net in nets]
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}


def shared_parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters() if not local(name)}


def fedbn(parts: Parts, nets: list[nn.Module]) -> None:
    """Three rounds of FedAvg with two local steps, batch norms left out of the mean."""
    for number in range(3):
        for device, net in enumerate(nets):
            sgd = torch.optim.SGD(net.parameters(), LR, MOMENTUM, weight_decay=DECAY)
            for step in (2 * number, 2 * number + 1):
                x, y = batch(parts, device, step)
                sgd.zero_grad()
                F.cross_entropy(net(x), y).backward()
                sgd.step()
        mean = average(nets, shared_parameters)
        for net in nets:
            net.load_state_dict({**net.state_dict(), **mean})


def synchronous(parts: Parts, nets: list[nn.Module]) -> None:
    """Three steps of one gradient for all, and of each device's own for its batch norms."""
    optimizers = [torch.optim.SGD(net.parameters(), LR, MOMENTUM, weight_decay=DECAY) for net in nets]
    for step in range(3):
        for device, (net, sgd) in enumerate(zip(nets, optimizers, strict=True)):
            x, y = batch(parts, device, step)
            sgd.zero_grad()
            F.cross_entropy(net(x), y).backward()
        mean = average(nets, lambda net: {n: p.grad for n, p in net.named_parameters() if p.grad is not None})
        for net, sgd in zip(nets, optimizers, strict=True):
            for name, parameter in net.named_parameters():
                if not local(name):
                    parameter.grad = mean[name].clone()
            sgd.step()


@pytest.mark.parametrize(
    ("algorithm", "reference"), [("fedavg", fedbn), ("sync-sgd", synchronous)], ids=["fedavg", "sync-sgd"]
)
def test_it_is_fedbn(
    specks: Dataset, tmp_path: Path, algorithm: str, reference: Callable[[Parts, list[nn.Module]], None]
) -> None:
    parts = assemble(config(algorithm), specks)
    nets = modules(parts)
    reference(parts, nets)
    _, states, _ = trained(config(algorithm), specks, tmp_path / "run")
    layout = parts.model.layout
    for net, state in zip(nets, states, strict=True):
        expected = net.state_dict()
        for entries, vector in ((layout.params, state.params), (layout.buffers, state.buffers)):
            for entry in entries:
                found = vector[entry.start : entry.stop].view(entry.shape)
                assert torch.allclose(found, expected[entry.name], rtol=0, atol=1e-12), entry.name
    for one, other in ((0, 1), (1, 2)):
        assert not torch.allclose(nets[one][1].weight, nets[other][1].weight, atol=1e-4)  # type: ignore[index]


def test_a_converted_model_is_the_same(specks: Dataset, tmp_path: Path) -> None:
    own = config(model=f"{__name__}:plain", convert=True)
    _, expected, _ = trained(config(), specks, tmp_path / "made")
    _, found, _ = trained(own, specks, tmp_path / "converted")
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.params, other.params) and torch.equal(one.buffers, other.buffers)


# ---- what leaves a device ----


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "scaffold+fedadam+sam", "fedlmd+fedcm"])
def test_nothing_local_leaves_a_device_or_moves_on_the_coordinator(
    specks: Dataset, tmp_path: Path, algorithm: str
) -> None:
    asked = config(algorithm)
    parts = assemble(asked, specks)
    layout, begun = parts.model.layout, parts.model.read()
    size = layout.count
    assert (layout.local.stop - layout.local.start, layout.local_buffers) == (8, slice(0, 8))
    guide = torch.ones(size).double() if asked.algorithm.guided else None
    task = Task(1, asked.algorithm.sync_every, 1.0, parts.model.read(), guide=guide)
    device = parts.devices[0]
    reply, memory = device.answer(task, parts.model, parts.work, Memory())
    update = asked.codec.decode(reply.payload, layout, torch.float64)
    assert not update[layout.local].any() and update.any()
    assert torch.equal(reply.buffers, task.state.buffers)
    assert memory.local is not None and not torch.allclose(memory.local.buffers, begun.buffers, atol=1e-3)
    # What it has for itself is what it goes on from, whatever the coordinator sends in its place.
    task.state.params[layout.local] = 7.0
    task.state.buffers.fill_(7.0)
    once = device.answer(task, parts.model, parts.work, memory)[1].local
    task.state.params[layout.local] = 9.0
    task.state.buffers.fill_(9.0)
    again = device.answer(task, parts.model, parts.work, memory)[1].local
    assert once is not None and again is not None
    assert torch.equal(once.params, again.params) and torch.equal(once.buffers, again.buffers)
    _, states, shared = trained(asked, specks, tmp_path / "run")
    assert torch.equal(shared.params[layout.local], begun.params[layout.local])
    assert torch.equal(shared.buffers, begun.buffers)
    assert not torch.allclose(shared.params, begun.params, atol=1e-3)
    assert all(not torch.allclose(state.buffers, begun.buffers, atol=1e-3) for state in states)


@pytest.mark.parametrize(
    "settings", [{"codec": "sign"}, {"aggregate": "median"}, {"codec_down": "int8"}], ids=str
)
def test_codecs_and_rules_leave_it_alone_too(
    specks: Dataset, tmp_path: Path, settings: dict[str, object]
) -> None:
    _, _, shared = trained(config(**settings), specks, tmp_path / "run")
    parts = assemble(config(), specks)
    begun, layout = parts.model.read(), parts.model.layout
    assert torch.equal(shared.params[layout.local], begun.params[layout.local])
    assert torch.equal(shared.buffers, begun.buffers)


@pytest.mark.parametrize(
    "algorithm", ["fedprox:0.5", "scaffold", "feddyn:0.5", "fedcm:0.1", "fedacg:0.85:0.5"]
)
def test_what_holds_devices_together_has_no_hold_on_what_is_local(specks: Dataset, algorithm: str) -> None:
    """One step from a memory and a guide that are not zero: where nothing is corrected, it is fedavg's."""
    parts = assemble(config(), specks)
    layout, begun = parts.model.layout, parts.model.read()
    draws = torch.Generator().manual_seed(1)
    noise = [torch.randn(layout.count, generator=draws).double() for _ in range(2)]
    own = Own({"control": noise[0], "gradient": noise[0]}, None, noise[1])
    ends = []
    for name in ("fedavg", algorithm):
        parts.model.write(begun)
        made = replace(config(name).algorithm, sync_every=1)
        update, _, memory = made.learn(parts.model, [batch(parts, 0, 0)], 1.0, own=own)
        assert not update[layout.local].any()
        ends.append(parts.model.read().params)
        kept = {key: vector for key, vector in memory.items() if key != "momentum"}
    found, expected = ends[1], ends[0]
    assert torch.equal(found[layout.local], expected[layout.local])
    assert not torch.equal(expected[layout.local], begun.params[layout.local])
    corrected = algorithm.split(":")[0] in ("scaffold", "feddyn", "fedcm")  # at the first step already
    assert torch.equal(found, expected) != corrected
    assert bool(kept) == (algorithm.split(":")[0] in ("scaffold", "feddyn"))


def test_a_device_that_was_never_asked_has_the_first_values(specks: Dataset, tmp_path: Path) -> None:
    asked = config(cohort=2, steps=2)
    _, states, shared = trained(asked, specks, tmp_path / "run")
    begun = assemble(asked, specks).model.read()
    fresh = [torch.equal(state.buffers, begun.buffers) for state in states]
    assert sorted(fresh) == [False, False, True]
    left_out = states[fresh.index(True)]
    assert torch.equal(left_out.params, shared.params)


def test_a_memory_in_a_file_has_it(tmp_path: Path) -> None:
    kept = Memory(
        3, {"residual": torch.ones(2)}, {"control": torch.zeros(4)}, State(torch.rand(3), torch.rand(2))
    )
    memories = Memories(folder=tmp_path / "m", budget=0)
    memories.propose(0, kept)
    assert memories[0].local is None  # not before the reply is taken
    memories.commit([0])
    found = memories[0].local
    assert kept.nbytes == 4 * 11 and found is not None and kept.local is not None
    assert torch.equal(found.params, kept.local.params) and torch.equal(found.buffers, kept.local.buffers)
    assert set(memories[0].codec) == {"residual"} and set(memories[0].algorithm) == {"control"}


# ---- accuracy ----


def test_accuracy_is_the_mean_of_what_each_device_sees(specks: Dataset, tmp_path: Path) -> None:
    """Held to each device's model evaluated on each class alone."""
    asked = config(partition="dirichlet:0.5")
    parts, states, _ = trained(asked, specks, tmp_path / "run")
    held = parts.held
    assert held is not None and parts.feed is not None
    seen, losses, right, holders = [], [], torch.zeros(CLASSES), torch.zeros(CLASSES)
    for device, state in enumerate(states):
        parts.model.write(state)
        accuracy = loss = 0.0
        for label in range(CLASSES):
            if count := int(held[device, label]):
                split = specks.test.pick((specks.test.labels == label).nonzero().flatten())
                found = evaluate(parts.model, split, parts.feed, CLASSES)
                share = count / int(held[device].sum())
                accuracy, loss = accuracy + share * found.accuracy, loss + share * found.loss
                right[label] += count * found.accuracy
                holders[label] += count
        seen.append(accuracy)
        losses.append(loss)
    row = records.rows(tmp_path / "run")[-1]
    assert row["accuracy"] == pytest.approx(sum(seen) / DEVICES, abs=1e-9)
    assert row["worst_device"] == pytest.approx(min(seen), abs=1e-9)
    assert row["loss"] == pytest.approx(sum(losses) / DEVICES, rel=1e-6)
    assert row["per_class"] == pytest.approx((right / holders).tolist(), abs=1e-6)
    assert len(set(seen)) > 1
    summary = records.summary(tmp_path / "run")
    assert summary is not None
    assert summary["per_device"] == {"mean": row["accuracy"], "worst": row["worst_device"]}


def test_what_has_no_test_examples_is_left_out(specks: Dataset) -> None:
    parts = assemble(config(), specks)
    assert parts.feed is not None
    few = specks.test.pick((specks.test.labels < 3).nonzero().flatten())
    held = torch.tensor([[2, 6, 0, 0, 0, 0], [0, 0, 4, 4, 0, 0], [0, 0, 0, 0, 3, 3]])
    apart = Apart(few, held)
    for device in range(DEVICES):
        apart.add(device, parts.model, parts.feed)
    found = apart.value()
    assert found is not None
    each = evaluate(parts.model, few, parts.feed, CLASSES).per_class
    assert found.per_class == (*each[:3], None, None, None)
    zero, one, two = (value or 0.0 for value in each[:3])
    devices = [0.25 * zero + 0.75 * one, two]  # the third holds nothing to be tried on
    assert (found.accuracy, found.worst) == pytest.approx((sum(devices) / 2, min(devices)))


def test_no_local_model_is_guessed_at(specks: Dataset, tmp_path: Path) -> None:
    """An update has no norms in it, so what the coordinator could look at is no device's model."""
    rows = list(run(config(diagnose="full:2"), tmp_path / "run", dataset=specks))
    assert all(row.probe is None and row.drift_cosine is not None for row in rows)
    assert rows[-1].forgetting is not None
    shared = list(run(config(norm="batch", diagnose="full:2"), tmp_path / "batch", dataset=specks))
    assert shared[-1].probe is not None


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"model": "fixup-resnet18"},
            "^norm: batch-local is a batch norm, of which the model fixup-resnet18 has",
        ),
        ({"model": f"{__name__}:bare"}, "^norm: batch-local is a batch norm.*or --convert$"),
        ({"model": f"{__name__}:plain"}, "^norm: batch-local is a batch norm.*or --convert$"),
        ({"model": f"{__name__}:bare", "convert": True}, "^convert: the model has no batch norm"),
        ({"algorithm": "sync-sgd", "fused": "on"}, "^fused: cannot be on: every device has norms of its own"),
        ({"algorithm": "sync-sgd", "codec": "dgc:0.1"}, "^codec: dgc takes the momentum .*or fedavg$"),
    ],
)
def test_what_makes_no_sense_is_refused(specks: Dataset, settings: dict[str, object], says: str) -> None:
    with pytest.raises(EdgewiseError, match=says):
        assemble(config(**settings), specks)  # type: ignore[arg-type]


def test_there_is_no_one_model_to_take_away(specks: Dataset, tmp_path: Path) -> None:
    trained(config(steps=2), specks, tmp_path / "run")
    for act in (export, refit):
        with pytest.raises(EdgewiseError, match=r"every device has norms of its own \(batch-local\)"):
            act(tmp_path / "run", dataset=specks)  # type: ignore[operator]
    with pytest.raises(EdgewiseError, match=r"^norm: with batch-local .* no one model to release"):
        next(ongoing(config(steps=2), tmp_path / "stream", phases=2, dataset=specks))
    assert not (tmp_path / "stream").exists()


def test_inspect_says_what_it_costs(specks: Dataset) -> None:
    found = inspect(config(), specks)
    assert found.score == 0 and "each device's own" in found.text
    assert "no one model comes out of it" in found.advice[0].reason and found.advice[0].change == "keep it"


# ---- what it is for ----


@pytest.mark.slow
def test_skew_breaks_batch_norm_and_not_this(tmp_path: Path) -> None:
    """Digits, two classes a device: one that always guessed the same of its two would see 50 %."""
    flat = {"partition": "labels:2", "batch": 8, "width": 2, "steps": 30, "lr": 0.05, "eval_every": 0}
    seen = {}
    for norm in ("batch", "batch-local"):
        list(run(Config.of({**flat, "norm": norm, "augment": "none"}), tmp_path / norm))
        summary = records.summary(tmp_path / norm)
        assert summary is not None
        seen[norm] = summary["per_device"]
    assert seen["batch"]["mean"] < 0.5 and seen["batch"]["worst"] < 0.25
    assert seen["batch-local"]["mean"] > 0.8 and seen["batch-local"]["worst"] > 0.6
