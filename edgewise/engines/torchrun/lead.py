"""Rank 0's engine: it gives the task to all ranks and its own devices, and takes what they make of it.

A round is a few words and the state to all ranks, a few words back from each, and one all-reduce of a vector.
An aggregate that has to see every update (a median, say) gets them all, as the frames that would travel.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgewise.cohorts import first
from edgewise.device import Reply, Task
from edgewise.diagnosis import Drift
from edgewise.diagnosis.watch import Sight
from edgewise.engines.torchrun.cost import Cost, rehearsal
from edgewise.engines.torchrun.group import Group, Words
from edgewise.engines.torchrun.share import Share, check, loads
from edgewise.errors import EdgewiseError
from edgewise.evaluate import Evaluation
from edgewise.intake import Pooled
from edgewise.memories import Note, joined
from edgewise.vector import State

if TYPE_CHECKING:
    from edgewise.assemble import Parts

# What rank 0 asks for.
PLAY, REHEARSE, TRAIN, ANSWER, TRY, SAVE, END = "play", "rehearse", "train", "answer", "try", "save", "end"


class Ranks:
    """`note`: what `memories.save` returned for the checkpoint that the run goes on from."""

    crowded = False

    def __init__(
        self, group: Group, parts: Parts, note: Note | None = None, folder: Path | None = None
    ) -> None:
        self.group, self.parts = group, parts
        self.taken = self.swept = False  # since the others were last told
        config = replace(parts.config, start=None)  # they are sent the state
        where = folder and str(folder.absolute())
        with group.asking(do=PLAY, config=config.flat(), note=note, folder=where):
            self.share = Share(group, parts, note, folder)
            told = group.reports()
        check(told)
        for rank, words in enumerate(told, start=1):
            if words["mark"] != self.share.mark:
                raise EdgewiseError(
                    f"rank {rank}: has other data or another model than rank 0; all need the same"
                )
        self.memories = Scattered(self)

    def choose(self, round: int, ranking: Sequence[int], size: int) -> Sequence[int]:
        return first(ranking, size)

    def ask(self, task: Task, cohort: list[int]) -> Iterator[Reply | Pooled]:
        if self.parts.config.aggregate.linear:
            yield self._pooled(task, cohort)
        else:
            yield from self._one_by_one(task, cohort)

    def evaluate(self, task: Task) -> Evaluation | None:
        if not self.parts.model.layout.personal:
            return None
        with self._asking(TRY, task):
            words, table = self.share.tried(task)
            told = [words, *self.group.reports()]
            table = self.group.pool(table)
        check(told)
        apart = self.share.trials()
        apart.recall, apart.losses = table
        return apart.value()

    def labels(self) -> Mapping[int, Sequence[int]]:
        return {}

    def close(self) -> None:
        """The others let go of their devices, and wait for another run."""
        if self.group.whole:
            with self._asking(END):
                pass

    def cost(self) -> Cost:
        """What a round costs on all ranks, and would on this one alone."""
        task = rehearsal(self.parts)
        words, _ = self.share.rehearsed(task)
        check([words])
        with self._asking(REHEARSE, task):
            here, vector = self.share.rehearsed(task)
            told = [here, *self.group.reports()]
            began = time.perf_counter()
            self.group.share(*_vectors(task))
            self.group.pool(vector)
            exchange = time.perf_counter() - began
        check(told)
        on_ranks = [0] * self.group.size
        for load, owner in zip(loads(self.parts), self.share.owners, strict=True):
            on_ranks[owner] += load
        share = self.parts.config.cohort_size / self.parts.config.devices
        slowest = max(one["seconds"] for one in told)
        return Cost(words["seconds"], slowest, exchange, share * max(on_ranks), share * sum(on_ranks))

    # ---- a round ----

    def _pooled(self, task: Task, cohort: list[int]) -> Pooled:
        with self._asking(TRAIN, task, cohort):
            words, vector = self.share.train(task, cohort)
            told = [words, *self.group.reports()]
            vector = self.group.pool(vector)
        check(told)
        return together(cohort, [words for words in told if words], vector, task.state)

    def _one_by_one(self, task: Task, cohort: list[int]) -> Iterator[Reply]:
        with self._asking(ANSWER, task, cohort):
            words, frames = self.share.answers(task, cohort)
            told = [words, *self.group.reports()]
            for rank, words in enumerate(told[1:], start=1):
                if words.get("lengths"):
                    content = memoryview(self.group.receive(rank))
                    frames += [
                        bytes(content[a:b]) for a, b in pairwise(accumulate(words["lengths"], initial=0))
                    ]
        check(told)
        replies = {reply.devices[0]: reply for reply in map(self.share.opened, frames)}
        for device in cohort:
            yield replies.pop(device)

    # ---- words ----

    @contextmanager
    def _asking(self, do: str, task: Task | None = None, cohort: Sequence[int] = ()) -> Iterator[None]:
        """With what has happened since the others were last told something; the task's vectors follow."""
        words = {"do": do, "taken": self.taken, "swept": self.swept}
        self.taken = self.swept = False
        vectors: tuple[Tensor, ...] = ()
        if task is not None:
            everyone = len(cohort) == self.parts.config.devices
            asked = {"cohort": None if everyone else list(cohort), "guided": task.guide is not None}
            words |= {"round": task.round, "steps": task.steps, "factor": task.factor, **asked}
            vectors = _vectors(task)
        with self.group.asking(**words):
            self.group.share(*vectors)
            yield


def _vectors(task: Task) -> tuple[Tensor, ...]:
    """All of a task that travels beside its words."""
    return (task.state.params, task.state.buffers, *(() if task.guide is None else (task.guide,)))


class Scattered:
    """What devices remember, each on its rank. The others hear of a commit with the next words."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def commit(self, devices: Iterable[int]) -> None:
        self.ranks.share.taken()
        self.ranks.taken = True

    def save(self) -> Note:
        """All ranks' files are on their disks; only then is there a note for the checkpoint."""
        with self.ranks._asking(SAVE):
            told = [self.ranks.share.save(), *self.ranks.group.reports()]
        check(told)
        return joined(words["memories"] for words in told)

    def sweep(self) -> None:
        self.ranks.share.memories.sweep()
        self.ranks.swept = True


def together(cohort: Sequence[int], told: Sequence[Words], vector: Tensor, like: State) -> Pooled:
    """One reply of what ranks with devices in the round said, and of the sum of all ranks' vectors."""
    count = len(like.params)
    sums = State(vector[:count], vector[count : count + len(like.buffers)])
    units = vector[count + len(like.buffers) :]
    names = ("devices", "losses", "bytes", "examples")
    rows = {row[0]: row for words in told for row in zip(*(words[name] for name in names), strict=True)}
    devices, losses, sent, examples = zip(*(rows[device] for device in cohort), strict=True)
    weight = sum(examples)
    drift = None
    if all(words["drift"] for words in told):
        columns = zip(*(words["drift"] for words in told), strict=True)
        number, lengths, weights = (sum(column) for column in columns)
        drift = Drift.of(units, number, lengths, weights)
    looked = [(int(d), logits) for words in told for d, logits in words["local"].items()]
    sight = Sight(
        drift,
        {device: torch.tensor(logits, dtype=torch.float64) for device, logits in sorted(looked)},
        max(words["seconds"] for words in told),
    )
    return Pooled(devices, losses, sent, examples, State(sums.params / weight, sums.buffers / weight), sight)
