"""The interface of an engine, and the memories of simulated devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from edgewise.codecs.base import Codec
from edgewise.device import Memory, Reply, Task


class Engine(Protocol):
    memories: Memories

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        """Give the task to every device of the cohort and yield the replies, in the cohort's order."""
        ...


class Memories:
    """What each simulated device remembers, made when first needed and changed only by `commit`."""

    def __init__(self, codec: Codec, steps: dict[int, int] | None = None) -> None:
        self.codec = codec
        self.kept = {device: Memory(step, codec.start()) for device, step in (steps or {}).items()}
        self.pending: dict[int, Memory] = {}

    def __getitem__(self, device: int) -> Memory:
        return self.kept.get(device) or Memory(0, self.codec.start())

    def propose(self, device: int, memory: Memory) -> None:
        """Hold a device's next memory until the coordinator has taken its reply."""
        self.pending[device] = memory

    def commit(self) -> None:
        """The coordinator has taken the round's replies."""
        self.kept.update(self.pending)
        self.pending.clear()

    def steps(self) -> dict[int, int]:
        """Every asked device's place in its data, in steps."""
        return {device: memory.step for device, memory in sorted(self.kept.items())}
