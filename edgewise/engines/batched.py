"""Many devices' local steps at once, for small models: their parameters are the rows of one matrix.

A step of a linear model on a batch of ten is over before Python has asked for the next. Here one call of the
model, mapped over devices by `torch.func.vmap`, takes that step for many of them, each with its own weights
and batch, and one update of the matrix follows. Every device computes what it would compute alone, up to the
order in which a product is added up: tests/test_batched.py holds it to `Inline`.

Mapped convolutions are grouped ones, which take a CPU longer than one model after another; and what does not
fit into the cache gains nothing. So the rule is one of sizes and kinds (`suits`), not of measured times: the
same config is to end in the same bits on a machine that is busy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edgewise.algorithms import FedAvg
from edgewise.algorithms.base import Algorithm
from edgewise.algorithms.momenta import RESET
from edgewise.device import Device, Memory, Reply, Task, Work, checked, encoded
from edgewise.engines.base import Simulated
from edgewise.errors import EdgewiseError
from edgewise.memories import Memories
from edgewise.rows import Rows
from edgewise.vector import FlatModel

ROOM = 1 << 22  # bytes of parameters that are trained at once: they stay in the cache
FEW = 4  # devices that must fit for it to be worth it
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def obstacle(algorithm: Algorithm, model: FlatModel) -> str:
    """Why devices cannot take their steps together, whatever the data; nothing if they can."""
    plain = isinstance(algorithm, FedAvg) and not algorithm.parts and algorithm.local_momentum == RESET
    obstacles = (
        (not plain, "only plain fedavg's devices can take their steps together"),
        (isinstance(algorithm, FedAvg) and algorithm.local_epochs, "devices take unequal numbers of steps"),
        (algorithm.sgd.agc, "agc clips the gradients of one model"),
        (model.autocast is not None, "bf16 is for one model at a time"),
        (any(True for _ in model.module.buffers()), "the model has buffers, which a batch may change"),
    )
    return next((words for stands, words in obstacles if stands), "")


def together(model: FlatModel, cohort: int) -> int:
    """How many devices train at once."""
    return max(1, min(cohort, ROOM // max(1, model.params.nbytes)))


def suits(model: FlatModel, cohort: int) -> bool:
    """Whether devices together are faster: a small model without convolutions."""
    folded = any(isinstance(module, CONVOLUTIONS) for module in model.module.modules())
    return together(model, cohort) >= FEW and not folded


def mapped(devices: Sequence[Device], model: FlatModel, work: Work) -> bool:
    """Whether the model can be mapped over devices: a step is tried, at a rate of 0."""
    state, engine = model.read(), Batched(devices, model, work, Memories(), together=2)
    some = range(min(2, len(devices)))
    try:
        with torch.random.fork_rng(devices=[]):
            list(engine.ask(Task(1, 1, 0.0, state), some))
    except EdgewiseError:
        raise
    except Exception:  # whatever it is that this model's own code does and no map can
        return False
    return True


class Batched(Simulated):
    """`together`: devices that train at once."""

    def __init__(
        self, devices: Sequence[Device], model: FlatModel, work: Work, memories: Memories, *, together: int
    ) -> None:
        super().__init__(devices, model, work, memories)
        self.together = together
        self._rows: dict[int, Rows] = {}  # by their number

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        for start in range(0, len(cohort), self.together):
            yield from self._answers(task, cohort[start : start + self.together])

    def _answers(self, task: Task, some: Sequence[int]) -> Iterator[Reply]:
        work, before = self.work, {id: self.memories[id] for id in some}
        updates, losses = self._learned(task, some, [before[id].step for id in some])
        examples, layout = task.steps * work.feed.size, self.model.layout
        for id, update, loss in zip(some, updates, losses.tolist(), strict=True):
            checked(id, task, loss)
            payload, kept = encoded(id, task, work, layout, update, before[id])
            self.memories.propose(id, Memory(before[id].step + task.steps, kept))
            yield Reply((id,), payload, self.model.buffers, examples, (loss,))

    def _learned(self, task: Task, some: Sequence[int], starts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The updates (G, P) and mean losses (G,) of devices that have taken `starts` steps before."""
        rows, work = self._matrix(len(some)), self.work
        rows.params.copy_(task.state.params)
        sgd, losses = work.algorithm.sgd, []
        momentum = sgd.start(rows.params)
        parts = [(id, self.devices[id].indices, start) for id, start in zip(some, starts, strict=True)]
        for x, y in work.feed.series(parts, task.steps):
            losses.append(rows.gradient(x, y, work.objective))
            sgd.step(rows.params, rows.grads, momentum, task.factor, self.model.layout)
        return rows.params - task.state.params, torch.stack(losses).mean(0)

    def _matrix(self, count: int) -> Rows:
        if count not in self._rows:
            self._rows[count] = Rows(self.model, count)
        return self._rows[count]
