"""All devices of a step in one gradient, where that is exact: K = 1 and a lossless codec of fixed size.

The mean of the devices' gradients is then the gradient of their concatenated batches. With `batch` every
device's slice keeps its own statistics (`DeviceBatchNorm2d`); with `batch-sync` the statistics are those of
the whole batch, which only this engine can give. tests/test_engines.py holds it to `Inline` for every norm.

The concatenated batch is walked through a few devices at a time (`together`): on a CPU the activations then
stay in the cache, which makes it faster than one large batch; the gradients add up to the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from edgewise import local
from edgewise.device import Device, Memory, Reply, Task, Work
from edgewise.engines.base import Simulated
from edgewise.memories import Memories
from edgewise.models.norms import set_devices
from edgewise.vector import FlatModel

CACHED = 64  # images that a CPU core carries through a small network without leaving its cache


class Fused(Simulated):
    def __init__(
        self, devices: Sequence[Device], model: FlatModel, work: Work, memories: Memories, *, together: int
    ) -> None:
        """`together`: how many devices share a forward pass; 0 for all of them."""
        super().__init__(devices, model, work, memories)
        self.together = together

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        if task.steps != 1:
            raise ValueError(f"one gradient for all devices is one step, not {task.steps}")
        model, size, losses = self.model, self.work.feed.size, []
        model.write(task.state)
        model.grads.zero_()
        buffers = torch.zeros_like(model.buffers)
        stride = self.together or len(cohort)
        for start in range(0, len(cohort), stride):
            some = cohort[start : start + stride]
            share = len(some) / len(cohort)
            model.buffers.copy_(task.state.buffers)
            losses.append(self._gradient(some, share).view(len(some), size).mean(1))
            buffers.add_(model.buffers, alpha=share)
        told = tuple(torch.cat(losses).tolist())
        yield Reply(tuple(cohort), model.grads, buffers, size * len(cohort), told)

    def _gradient(self, some: Sequence[int], share: float) -> torch.Tensor:
        steps = {id: self.memories[id].step for id in some}
        batch = self.work.feed.joint([(id, self.devices[id].indices, steps[id]) for id in some])
        for id in some:
            self.memories.propose(id, Memory(steps[id] + 1))
        set_devices(self.model.module, len(some))
        try:
            return local.gradient(self.model, batch, self.work.objective, share)
        finally:
            set_devices(self.model.module, 1)
