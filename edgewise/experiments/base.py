"""What a figure is: runs by scale, and the reference's own words to hold them against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgewise.config import Config


@dataclass(frozen=True)
class Figure:
    """A figure of the reference. `curves` gives each run its label, in the order of the legend and table."""

    title: str
    source: str  # which figure or paragraph of the reference
    statement: str  # what the reference says, in our words
    curves: dict[str, str]
    expected: dict[str, str]  # what the reference says of each run
    scales: tuple[str, ...]
    runs: Callable[[str], dict[str, Config]]
    page: Callable[[Plan, Path], str]  # writes NAME.csv, .png and .md into a folder; returns the table


@dataclass(frozen=True)
class Plan:
    """A figure at one scale, with its runs' configs by name."""

    name: str
    scale: str
    figure: Figure
    runs: dict[str, Config]
