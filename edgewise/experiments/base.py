"""What a figure is: runs by scale, what the reference says of them, and the page they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgewise.config import Config


class Page(Protocol):
    def write(self, plan: Plan, runs: Path, out: Path) -> str:
        """Write NAME.csv, NAME.png and NAME.md into `out` from what is in `runs`; returns the last one."""
        ...


@dataclass(frozen=True)
class Figure:
    """A figure of the reference."""

    title: str
    source: str  # which figure or paragraph of the reference
    statement: str  # what the reference says, in our words
    scales: tuple[str, ...]
    runs: Callable[[str], dict[str, Config]]  # by scale; their seeds count from the one that is asked for
    page: Page
    family: str | None = None  # of figures in which a run of one name is the same run
    diverging: bool = False  # whether a run that diverges is a result, which the page can show


@dataclass(frozen=True)
class Plan:
    """A figure at one scale, with its runs' configs by name."""

    name: str
    scale: str
    figure: Figure
    runs: dict[str, Config]
