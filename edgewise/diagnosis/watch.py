"""One round, watched on the coordinator: updates as they come, then the state that was made of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgewise import randomness
from edgewise.data.feed import Feed
from edgewise.diagnosis.drift import Drift
from edgewise.diagnosis.effort import Looks
from edgewise.diagnosis.probe import Probe, Probed, Seen
from edgewise.vector import FlatModel, State

NUMBERS = ("own", "absent", "counterforce", "margin")


@dataclass(frozen=True)
class Watching:
    """What watches the rounds of a run. `probe`, `feed`: None where there is nothing to look at local

    models with, or no local model in an update. `model` is used to look, and its state overwritten.
    `averaged`: what a round's updates come to is their mean.
    """

    looks: Looks
    seed: int
    model: FlatModel
    probe: Probe | None = None
    feed: Feed | None = None
    averaged: bool = True

    def round(self, number: int, start: State, cohort: Sequence[int]) -> Watch:
        """A round that begins at `start`. `cohort`: of whose local models some are looked at."""
        if self.probe is None or not cohort:
            return Watch(self, start, frozenset())
        order = torch.randperm(len(cohort), generator=randomness.generator(self.seed, "probe", 0, number))
        return Watch(self, start, frozenset(cohort[place] for place in order[: self.looks.devices].tolist()))

    def look(self, state: State) -> Tensor:
        """The logits of the probe."""
        assert self.probe is not None and self.feed is not None
        self.model.write(state)
        return self.probe.logits(self.model, self.feed)


@dataclass
class Sight:
    """What there was to see of some of a round's updates, looked at where they came in.

    `drift`: of these updates; None where they could not be told apart. `local`: the probe's logits by device.
    `seconds`: how long was looked at local models.
    """

    drift: Drift | None
    local: dict[int, Tensor]
    seconds: float = 0.0


class Watch:
    """`seconds`: how long was looked at local models, which is evaluation and no part of the round."""

    def __init__(self, watching: Watching, start: State, chosen: frozenset[int]) -> None:
        self.watching, self.start, self.chosen = watching, start, chosen
        self.drift: Drift | None = None
        self.apart = watching.looks.drift
        self.local: dict[int, Tensor] = {}  # the probe's logits, by device
        self.before: Tensor | None = None  # the same at the round's start
        self.seconds = 0.0

    def add(self, devices: Sequence[int], update: State, weight: float) -> None:
        """One reply: the update of a device, or of several, which can no longer be told apart."""
        if len(devices) != 1:
            self.apart = False
            return
        if self.apart:
            if self.drift is None:
                self.drift = Drift(update.params, adds=not self.watching.averaged)
            self.drift.add(update.params, weight)
        if devices[0] in self.chosen:
            began = time.monotonic()
            local = State(self.start.params + update.params, update.buffers)
            self.local[devices[0]] = self.watching.look(local)
            self.seconds += time.monotonic() - began

    @property
    def sight(self) -> Sight:
        """What was seen of the updates so far; `join` takes it in elsewhere."""
        return Sight(self.drift if self.apart else None, self.local, self.seconds)

    def join(self, sight: Sight) -> None:
        """What others saw of further updates, at the same time as each other."""
        if sight.drift is None:
            self.apart = False
        elif self.drift is None:
            self.drift = sight.drift
        else:
            self.drift.join(sight.drift)
        self.local |= sight.local
        self.seconds += sight.seconds

    def drifted(self, combined: State) -> dict[str, Any]:
        """The fields of a round that say how far updates disagreed; None where they were not to be told.

        `combined`: what they came to, before the server steps.
        """
        drift = self.drift if self.apart else None
        if drift is None:
            return {}
        return {"drift_cosine": drift.cosine, "drift_diversity": drift.diversity(combined.params)}

    def look_back(self) -> None:
        """Look at the state that the round began at, if at some local model: before the server steps, since

        that may change the state in place.
        """
        began = time.monotonic()
        if self.local:
            self.before = self.watching.look(self.start)
        self.seconds += time.monotonic() - began

    def probed(self, after: State, labels: Mapping[int, Sequence[int]]) -> Probed | None:
        """What was seen. `labels`: examples of each class, of those devices that told."""
        probe, before = self.watching.probe, self.before
        if before is None or probe is None:
            return None
        averaged = self.watching.look(after)
        recall = torch.stack([probe.recall(local) for local in self.local.values()]).mean(0)
        by_class = [_known(row) for row in (probe.recall(before), recall, probe.recall(averaged))]
        seen = []
        for device, local in self.local.items():
            present = torch.tensor(labels.get(device, [])) > 0
            if len(present) and not present.all():
                seen.append([probe.seen(logits, present) for logits in (before, local, averaged)])
        devices = tuple(sorted(self.local))
        return Probed(devices, len(probe.split), tuple(by_class), **_means(seen))


def _means(seen: Sequence[Sequence[Seen]]) -> dict[str, tuple[float, ...]]:
    """Over the devices, at each of the three times; without what is not a number anywhere."""
    if not seen:
        return {}
    table = torch.tensor([[[getattr(one, name) for name in NUMBERS] for one in row] for row in seen])
    means = table.double().nanmean(0)  # (3, numbers)
    return {
        name: tuple(round(value, 6) for value in means[:, place].tolist())
        for place, name in enumerate(NUMBERS)
        if bool(means[:, place].isfinite().all())
    }


def _known(recall: Tensor) -> tuple[float | None, ...]:
    return tuple(None if value != value else round(value, 6) for value in recall.tolist())
