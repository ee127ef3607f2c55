"""Training that goes on: data arrives, and what is no worse than the released model is released.

Simulated on a stream in which classes appear over time:

    each phase:
        new examples arrive on every device; a fifth of them is held out there
        candidate = a run from the current release on all that devices have by now
        release it if it is no worse on the devices' held-out data, over all and on the worst device
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgewise import data, randomness, records
from edgewise.assemble import DTYPES, build_module
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.data.batches import Augment
from edgewise.data.feed import Feed
from edgewise.data.partition import deal
from edgewise.errors import EdgewiseError
from edgewise.evaluate import evaluate
from edgewise.files import one_line
from edgewise.reconcile import agree
from edgewise.releases import Event, Releases, Standing
from edgewise.rounds import run
from edgewise.vector import FlatModel, Layout
from edgewise.weights import fill

HELD_OUT = 0.2
STREAM = "stream.json"  # what the stream in a folder is


@dataclass(frozen=True)
class Phase:
    """A phase as it ended. `classes`: those that have appeared; `examples`: what devices train on by now."""

    number: int
    classes: int
    examples: int
    event: Event
    current: int | None


def ongoing(
    config: Config,
    out: str | Path,
    *,
    phases: int = 5,
    tolerance: float = 0.0,
    dataset: Dataset | None = None,
) -> Iterator[Phase]:
    """Train `config` once a phase on what has arrived, in the folder `out`, and yield every phase.

    Classes appear in order, an even share of them each phase; a class's examples arrive evenly in the
    phases from its first on. `config` gives the length of a phase's run (`steps` or `epochs`) and deals
    examples to devices, once. A folder that holds phases already is gone on with, `tolerance` aside as it
    began. EdgewiseError for a stream that cannot be, or that is another than the folder's.
    """
    dataset = dataset or data.load(config.data, Path(config.data_dir) if config.data_dir else None)
    count = len(dataset.classes)
    if not 1 <= phases <= count:
        raise EdgewiseError(f"--phases: {phases} is out of range; legal: 1 to {count} (the classes)")
    if Layout.of(build_module(replace(config, start=None), dataset)).personal:
        raise EdgewiseError(
            "norm: with batch-local every device has norms of its own, and there is no one model to release; "
            "take another norm, such as group"
        )
    folder = Path(out)
    owners = deal(config.partition, dataset.train, count, config.devices, config.seed)
    arrivals = _arrivals(dataset.train.labels, count, phases, config.seed)
    releases = Releases.read(folder)
    _agree(folder, config, phases, begun=bool(releases.events) or records.holds_run(_phase(folder, 0)))
    done = sum(event.kind in ("released", "refused") for event in releases.events)
    for number in range(done, phases):
        held, kept = _present(owners, arrivals <= number, config.seed)
        weights = _trained(config, dataset, kept, releases, _phase(folder, number))
        standings = [
            None if path is None else _standing(config, dataset, held, path)
            for path in (weights, releases.weights() if releases.current else None)
        ]
        assert standings[0] is not None
        releases = releases.offer(weights, standings[0], standings[1], tolerance)
        appeared = int(torch.unique(dataset.train.labels[torch.cat(kept)]).numel())
        yield Phase(number + 1, appeared, sum(map(len, kept)), releases.events[-1], releases.current)


def _phase(folder: Path, number: int) -> Path:
    """The folder of a phase's run."""
    return folder / "phases" / f"{number + 1:03}"


def _agree(folder: Path, config: Config, phases: int, begun: bool) -> None:
    """Write down what the stream is when it begins; EdgewiseError if it goes on as another.

    With other phases, partition or seed, what was held out before would be trained on.
    """
    path = folder / STREAM
    if not (begun and path.exists()):
        with one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
        records.write(path, json.dumps({"phases": phases, "config": config.flat()}, indent=2) + "\n")
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        began, was = content["phases"], Config.of(content["config"]).flat()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgewiseError(f"{path}: not a readable description of a stream ({error})") from None
    if began != phases:
        raise EdgewiseError(
            f"--phases: the stream in {folder} has {began}, not {phases}; legal: {began}, or another --out"
        )
    agree(f"the stream in {folder}", was, config.flat())


def _arrivals(labels: Tensor, classes: int, phases: int, seed: int) -> Tensor:
    """The phase in which each example arrives, int64 (N,)."""
    arrival = torch.zeros(len(labels), dtype=torch.int64)
    for label in range(classes):
        first = label * phases // classes
        places = (labels.cpu() == label).nonzero().flatten()
        order = torch.randperm(len(places), generator=randomness.generator(seed, "arrivals", label))
        arrival[places[order]] = first + torch.arange(len(places)) * (phases - first) // max(len(places), 1)
    return arrival


def _present(owners: list[Tensor], here: Tensor, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """What devices hold out and what they train on, of the examples that are `here`; devices with none
    left out.

    Which examples are held out is decided once for each, so none is trained on first and held out later.
    """
    held, kept = [], []
    for device, indices in enumerate(owners):
        draws = np.random.default_rng(randomness.key(seed, "held out", device)).random(len(indices))
        mine, out = here[indices], torch.from_numpy(draws < HELD_OUT)
        if bool((mine & ~out).any()) and bool((mine & out).any()):
            held.append(indices[mine & out])
            kept.append(indices[mine & ~out])
    if not kept:
        raise EdgewiseError("ongoing: no device has examples to train on and to hold out in the first phase")
    return held, kept


def _trained(config: Config, dataset: Dataset, kept: list[Tensor], releases: Releases, folder: Path) -> Path:
    """The candidate's weights; a phase that was cut off is gone on with."""
    start = str(releases.weights()) if releases.current else config.start
    asked = replace(config, devices=len(kept), start=start)
    if records.summary(folder) is None:
        for _ in run(asked, folder, dataset=dataset, dealt=kept, resume=records.holds_run(folder)):
            pass
    return folder / records.MODEL


def _standing(config: Config, dataset: Dataset, held: list[Tensor], weights: Path) -> Standing:
    """Accuracy on what devices hold out: over all examples, and on the worst device."""
    module = build_module(replace(config, start=None), dataset)
    fill(module, weights)
    model = FlatModel(module.to(DTYPES[config.precision]), Layout.of(module))
    feed = Feed.of(dataset, config.batch, Augment(), DTYPES[config.precision], config.seed)
    right, worst, total = 0.0, 1.0, 0
    for indices in held:
        split = dataset.train.pick(indices)
        found = evaluate(model, split, feed, len(dataset.classes), config.objective).accuracy
        right, total, worst = right + found * len(indices), total + len(indices), min(worst, found)
    return Standing(right / total, worst)
