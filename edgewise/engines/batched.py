"""Many devices' local steps at once, for small models: their parameters are the rows of one matrix.

A step of a linear model on a batch of ten is over before Python has asked for the next. Here one call of the
model, mapped over devices by `torch.func.vmap`, takes that step for many of them, each with its own weights
and batch, and one update of the matrix follows. Every device computes what it would compute alone, up to the
order in which a product is added up: tests/test_batched.py holds it to `Inline`.

Mapped convolutions are grouped ones, which take a CPU longer than one model after another; and what does not
fit into the cache gains nothing. So the rule is one of sizes and kinds (`suits`), not of measured times: the
same config is to end in the same bits on a machine that is busy. That a map runs does not say that it is
right, so two devices' gradients are held against those alone before a run (`unmapped`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edgewise import local
from edgewise.algorithms import FedAvg
from edgewise.algorithms.base import Algorithm
from edgewise.algorithms.momenta import RESET
from edgewise.device import Device, Memory, Reply, Task, Work, checked, encoded
from edgewise.engines.base import Simulated
from edgewise.errors import EdgewiseError
from edgewise.memories import Memories
from edgewise.optimizers import SGD
from edgewise.rows import Rows
from edgewise.vector import FlatModel

ROOM = 1 << 22  # bytes of parameters that are trained at once: they stay in the cache
BATCHES = 1 << 24  # bytes of their batches: what a model makes of these grows with them
FEW = 4  # devices that must fit for it to be worth it
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def obstacle(algorithm: Algorithm, model: FlatModel) -> str:
    """Why devices cannot take their steps together, whatever the data; nothing if they can."""
    other = "only plain fedavg's devices can take their steps together"
    if not isinstance(algorithm, FedAvg) or {type(algorithm), type(algorithm.sgd)} != {FedAvg, SGD}:
        return other  # a subclass may do otherwise
    obstacles = (
        (algorithm.parts or algorithm.local_momentum != RESET, other),
        (algorithm.local_epochs, "devices take unequal numbers of steps"),
        (model.layout.personal, "every device has a part of the model of its own"),
        (algorithm.sgd.agc, "agc clips the gradients of one model"),
        (model.autocast is not None, "bf16 is for one model at a time"),
        (any(True for _ in model.module.buffers()), "the model has buffers, which a batch may change"),
    )
    return next((words for stands, words in obstacles if stands), "")


def together(model: FlatModel, batch: int, cohort: int) -> int:
    """How many devices train at once. `batch`: bytes of a device's batch."""
    return max(1, min(cohort, ROOM // max(1, model.params.nbytes), BATCHES // max(1, batch)))


def suits(model: FlatModel, count: int) -> bool:
    """Whether so many devices together are faster: on a CPU, a small model without convolutions."""
    folded = any(isinstance(module, CONVOLUTIONS) for module in model.module.modules())
    return count >= FEW and not folded and model.params.device.type == "cpu"


def unmapped(devices: Sequence[Device], model: FlatModel, work: Work) -> str:
    """Why the model cannot be mapped over devices; nothing if two have the gradients they have alone.

    Nothing is left of the try: a model that would draw a random number is refused before it does.
    """
    some, state = devices[:2], model.read()
    try:
        rows = Rows(model, len(some))
        rows.params.copy_(state.params)
        x, y = work.feed.joint([(device.id, device.indices, 0) for device in some])
        losses = rows.gradient(x, y, work.objective)
        for place, device in enumerate(some):
            model.grads.zero_()
            batch = work.feed.batch(device.id, device.indices, 0)
            alone = local.gradient(model, batch, work.objective).mean()
            if not (_near(losses[place], alone) and _near(rows.grads[place], model.grads)):
                return "it gives other gradients than alone"
    except (MemoryError, torch.cuda.OutOfMemoryError, EdgewiseError):
        raise
    except Exception as error:  # whatever it is that this model's own code does and no map can
        return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    finally:
        model.grads.zero_()
        model.write(state)
    return ""


def _near(one: Tensor, other: Tensor) -> bool:
    """Up to rounding, which may be float32's; NaN is as good as NaN."""
    scale = float(other.abs().nan_to_num().max())
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3 * scale, equal_nan=True)


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
        # A rank's share of a cohort has many sizes: the last is kept, and the full one.
        if count not in self._rows:
            self._rows = {size: rows for size, rows in self._rows.items() if size == self.together}
            self._rows[count] = Rows(self.model, count)
        return self._rows[count]
