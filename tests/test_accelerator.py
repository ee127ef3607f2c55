"""An accelerator's inner loop waits for nothing: seen on PyTorch's meta device, whose tensors hold no values.

It stands for a GPU: what is copied to it or read from it, and what mixes its tensors with the CPU's, passes
through the dispatcher as it would with one. Not seen: tensors that are made there from Python's numbers, and
whether memory is pinned. How fast anything is only a GPU can tell.
"""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise import data
from edgewise.accelerator import sent
from edgewise.algorithms import ALGORITHMS, FedAvg, SyncSGD, parse
from edgewise.assemble import Parts, assemble, build_module, move
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.data.batches import Augment
from edgewise.data.feed import Feed
from edgewise.device import Task
from edgewise.evaluate import evaluate
from edgewise.memories import Memories
from edgewise.models.norms import Batch, Group
from edgewise.optimizers import SGD
from edgewise.rounds import Progress, _round
from edgewise.vector import FlatModel

AWAY, HERE = torch.device("meta"), torch.device("cpu")


class Traffic(TorchDispatchMode):
    """Counts what makes a CPU wait for an accelerator; `waits`: those calls by name."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = {tensor.device for tensor in tensors if tensor.dim()}  # numbers go along with a call
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and args[0].device == AWAY:
            self.waits["read a number"] += 1
            return torch.ones((), dtype=args[0].dtype).item()
        if name == "aten::_to_copy" and args[0].device == AWAY and kwargs.get("device") == HERE:
            self.waits["read a tensor"] += 1
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "aten::_to_copy" and args[0].device == HERE and kwargs.get("device") == AWAY:
            self.waits["sent, waiting"] += not kwargs.get("non_blocking")
        elif places == {AWAY, HERE}:
            self.waits[f"{name} of both places"] += 1
        if name in ("aten::nonzero", "aten::unique", "aten::bincount", "aten::masked_select"):
            self.waits[f"{name}, of unknown length"] += AWAY in places
        return func(*args, **kwargs)


def linear(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


@pytest.fixture(params=["plain", "all"])
def base(request: pytest.FixtureRequest) -> Config:
    some = Config(devices=2, width=2, batch=4, steps=6)
    if request.param == "plain":
        return replace(some, norm=Group(), augment=Augment())
    return replace(some, norm=Batch(), augment=Augment(crop=1, flip=True, cutout=2, mixup=0.5))


def away(config: Config, dataset: Dataset) -> Parts:
    """A run's parts, with its model and its data on the accelerator."""
    assert config.augment is not None
    parts = assemble(replace(config, accelerator="cpu"), dataset)
    with Traffic():  # a dataset looks at its labels when it is made
        there = move(dataset, "meta")
        feed = Feed.of(there, config.batch, config.augment, torch.float32, config.seed)
    model = FlatModel(build_module(config, dataset).to("meta"), parts.model.layout)
    return replace(parts, model=model, dataset=there, feed=replace(feed, labels=dataset.train.labels))


def rounds(parts: Parts) -> Counter[str]:
    """What waits in a round, in one that is not the first."""
    progress, engine = Progress.start(parts), parts.simulated(Memories())
    with Traffic() as traffic:
        _round(parts, engine, progress)
        traffic.waits.clear()
        _round(parts, engine, progress)
    return +traffic.waits


def test_a_step_of_all_devices_reads_their_losses_only(base: Config, digits: Dataset) -> None:
    reads = rounds(away(replace(base, algorithm=SyncSGD(SGD(0.01)), fused="on", eval_every=100), digits))
    assert sum(reads.values()) == 1, reads


def test_a_round_reads_a_loss_and_a_length_of_each_device(base: Config, digits: Dataset) -> None:
    config = replace(base, algorithm=FedAvg(SGD(0.01), sync_every=2), fused="off", eval_every=100)
    lengths = config.devices + 2  # of the updates, of the sum of their directions and of their mean
    assert rounds(away(config, digits)) == {"read a number": config.devices + lengths}


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "sync-sgd"])
def test_no_step_of_a_round_waits(name: str, digits: Dataset) -> None:
    """A round of more steps waits as often as one of fewer, whatever the algorithm."""
    augment = Augment(crop=1, flip=True, cutout=2)
    base = Config(devices=2, width=2, batch=4, augment=augment, fused="off", eval_every=100)
    found = []
    for steps in (1, 3):
        algorithm = parse(name, SGD(0.01), sync_every=steps)
        found.append(rounds(away(replace(base, algorithm=algorithm, steps=3 * steps), digits)))
    assert found[0] == found[1]
    assert not any("both" in name or "sent" in name or "length" in name for name in found[0]), found[0]


def test_no_step_of_devices_side_by_side_waits(digits: Dataset) -> None:
    base = Config(model=f"{__name__}:linear", devices=4, batch=4, augment=Augment(), fused="on")
    found = []
    for steps in (1, 3):
        config = replace(base, algorithm=FedAvg(SGD(0.01), sync_every=steps), steps=3 * steps, eval_every=100)
        found.append(rounds(away(config, digits)))
    assert found[0] == found[1] == {"read a tensor": 1, "read a number": 4 + 2}


def test_what_is_sent_is_pinned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, *where, **how: calls.append((where, how)) or self)
    for place in (torch.device("cuda"), HERE):
        sent(torch.ones(2), place)
    gone = [((place,), {"non_blocking": True}) for place in (torch.device("cuda"), HERE)]
    assert calls == ["pinned", *gone]


def test_an_evaluation_reads_what_it_comes_to(base: Config, digits: Dataset) -> None:
    parts = away(base, digits)
    assert parts.dataset is not None and parts.feed is not None
    with Traffic() as traffic:
        evaluate(parts.model, parts.dataset.test, parts.feed, 10)
    assert sum(traffic.waits.values()) == 3  # right, seen, loss: however many batches there are


def test_what_waits_is_seen(base: Config, digits: Dataset) -> None:
    """The counting itself: reading, sending from pageable memory, an index that lies elsewhere."""
    parts = away(base, digits)
    with Traffic() as traffic:
        float(parts.model.params.sum())
        parts.model.params.cpu()
        torch.ones(2).to("meta")
        parts.model.params[torch.tensor([0, 1])]
    assert set(traffic.waits) == {
        *("read a number", "read a tensor", "sent, waiting", "aten::index of both places"),
    }


def test_a_lossless_update_stays_where_it_was_made(base: Config, digits: Dataset) -> None:
    for algorithm in (SyncSGD(SGD(0.01)), FedAvg(SGD(0.01), sync_every=2)):
        parts = away(replace(base, algorithm=algorithm, fused="off"), digits)
        task = Task(1, algorithm.sync_every, 1.0, parts.model.read())
        with Traffic():
            for reply in parts.simulated(Memories()).ask(task, range(2)):
                assert isinstance(reply.payload, Tensor) and reply.payload.device == AWAY
