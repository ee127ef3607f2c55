"""The interface of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from edgewise.device import Reply, Task
from edgewise.memories import Memories


class Engine(Protocol):
    memories: Memories

    def ask(self, task: Task, cohort: Sequence[int]) -> Iterator[Reply]:
        """Give the task to every device of the cohort and yield the replies, in the cohort's order."""
        ...
