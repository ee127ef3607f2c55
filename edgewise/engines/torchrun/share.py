"""A rank's devices, and what it does with them: the same on rank 0 as on all others."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgewise.device import Reply, Task
from edgewise.engines.fused import Fused
from edgewise.engines.torchrun.cost import rehearse
from edgewise.engines.torchrun.group import Group, Words
from edgewise.engines.torchrun.spread import spread
from edgewise.errors import Diverged, EdgewiseError
from edgewise.evaluate import Apart
from edgewise.intake import Intake
from edgewise.memories import BUDGET, Memories, Note, part
from edgewise.pacing import evaluated
from edgewise.records import MEMORIES
from edgewise.vector import Mean

if TYPE_CHECKING:
    from edgewise.assemble import Parts

ERROR, DIVERGED = "error", "diverged"  # of what is told


class Share:
    """`owners`: the rank of each device; `engine` asks those of this one, whose memories lie here."""

    def __init__(self, group: Group, parts: Parts, note: Note | None, folder: Path | None) -> None:
        """`note`: of all devices' memories; `folder`: the run's."""
        self.group, self.parts = group, parts
        self.owners = spread(loads(parts), group.size)
        self.mine = frozenset(d for d, owner in enumerate(self.owners) if owner == group.rank)
        files = folder and folder / MEMORIES
        self.memories = Memories(part(note, self.mine), files, BUDGET // group.together, self.mine)
        self.engine = parts.simulated(self.memories)
        # Updates that Fused has put together cannot be compared any more.
        self.compared = parts.watching.looks.drift and not isinstance(self.engine, Fused)

    def of(self, cohort: Sequence[int]) -> list[int]:
        """Which of a cohort are here, in the cohort's order."""
        return [device for device in cohort if device in self.mine]

    def taken(self) -> None:
        """The replies of the last round are in the coordinator's state."""
        self.memories.commit(list(self.memories.pending))

    def rehearsed(self, task: Task) -> tuple[Words, Tensor]:
        """How long an example takes on this rank, and a vector of a round's length."""

        def work() -> Words:
            return {"seconds": rehearse(self.parts, task, sorted(self.mine))}

        return attempted(self.group.rank, work), self._nothing(task)

    # ---- a round ----

    def train(self, task: Task, cohort: Sequence[int]) -> tuple[Words, Tensor]:
        """A round of this rank's devices: what is said of it, and what goes into the ranks' sum.

        That is the sums of updates (P,) and of buffers (B,), both times examples, and where updates are
        compared that of their directions (P,). An error is said, and adds nothing.
        """
        vector = self._nothing(task)

        def work() -> Words:
            mine = self.of(cohort)
            return self._trained(task, mine, cohort, vector) if mine else {}

        words = attempted(self.group.rank, work)
        return words, vector.zero_() if ERROR in words else vector

    def _nothing(self, task: Task) -> Tensor:
        params, buffers = task.state.params, task.state.buffers
        return params.new_zeros((1 + self.compared) * len(params) + len(buffers))

    def _trained(self, task: Task, mine: Sequence[int], cohort: Sequence[int], vector: Tensor) -> Words:
        parts = self.parts
        due = evaluated(parts.config, task.round, parts.rounds)
        watch = parts.watching.round(task.round, task.state, cohort if due else ())
        intake = Intake(parts.config, parts.model.layout, task, watch)
        intake.take(self.engine.ask(task, mine))
        assert isinstance(intake.gathering, Mean)
        total, sight, tally = intake.gathering.total, watch.sight, intake.tally
        drift = sight.drift if self.compared else None
        units = [] if drift is None else [drift.units]
        torch.cat([total.params, total.buffers, *units], out=vector)
        return {
            "devices": tally.devices,
            "losses": tally.losses,
            "bytes": tally.bytes,
            "examples": tally.examples,
            "drift": [] if drift is None else [drift.count, drift.lengths, drift.weight],
            "local": {device: logits.tolist() for device, logits in sight.local.items()},
            "seconds": sight.seconds,
        }

    def answers(self, task: Task, cohort: Sequence[int]) -> tuple[Words, list[bytes]]:
        """The replies of this rank's devices one by one, as the frames that travel."""
        agreed, frames = self.parts.work.agreed, list[bytes]()

        def work() -> Words:
            replies = self.engine.ask(task, self.of(cohort))
            frames.extend(reply.pack(task.round, agreed) for reply in replies)
            return {"lengths": [len(frame) for frame in frames]}

        return attempted(self.group.rank, work), frames

    def opened(self, frame: bytes | memoryview) -> Reply:
        """The reply in a frame."""
        return Reply.unpack(frame, self.parts.work.agreed, self.parts.model.buffers.dtype)

    # ---- between rounds ----

    def trials(self) -> Apart:
        """An evaluation that begins, where each device has a model of its own."""
        assert self.engine.trials is not None
        return self.engine.trials()

    def tried(self, task: Task) -> tuple[Words, Tensor]:
        """This rank's devices tried on the task's state: their rows of scores and losses, all others zero."""
        apart = self.trials()

        def work() -> Words:
            self.engine.tried(task, apart, [self.parts.devices[device] for device in sorted(self.mine)])
            return {}

        words = attempted(self.group.rank, work)
        return words, torch.stack([apart.recall, apart.losses])

    def save(self) -> Words:
        """What finds the memories again, once their files are written."""
        return attempted(self.group.rank, lambda: {"memories": self.memories.save()})

    @property
    def mark(self) -> str:
        """What all ranks must have alike: the model's layout, and who holds which examples."""
        content = hashlib.sha256(f"{self.parts.model.layout.digest} {self.parts.holdings}".encode())
        for device in self.parts.devices:
            content.update(device.indices.cpu().numpy().tobytes())
        return content.hexdigest()


def loads(parts: Parts) -> list[int]:
    """What each device trains on in a round, in examples."""
    algorithm, batch = parts.terms.algorithm, parts.config.batch
    return [
        batch * algorithm.local_steps(algorithm.sync_every, len(device.indices), batch)
        for device in parts.devices
    ]


def attempted(rank: int, work: Callable[[], Words]) -> Words:
    """What it says, or its error; what nobody foresaw is shown in full on the rank where it happened."""
    try:
        return work()
    except EdgewiseError as error:
        return {ERROR: str(error), DIVERGED: isinstance(error, Diverged)}
    except Exception as error:
        if rank == 0:
            raise
        traceback.print_exc(file=sys.stderr)
        return {ERROR: f"rank {rank}: {type(error).__name__}: {error}"}


def check(told: Sequence[Words]) -> None:
    """EdgewiseError for the first of the ranks that has one."""
    for words in told:
        if ERROR in words:
            raise (Diverged if words.get(DIVERGED) else EdgewiseError)(words[ERROR])
