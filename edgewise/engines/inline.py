"""All devices in this process, one after another, in one resident model. Simple, and the one to trust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgewise.device import Reply, Task
from edgewise.engines.base import Simulated


class Inline(Simulated):
    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        agreed, dtype = self.work.agreed, self.model.buffers.dtype
        for id in cohort:
            reply, memory = self.devices[id].answer(task, self.model, self.work, self.memories[id])
            self.memories.propose(id, memory)
            # Through the bytes that would travel: what the coordinator combines is what they hold.
            yield reply if self.work.near else Reply.unpack(reply.pack(task.round, agreed), agreed, dtype)
