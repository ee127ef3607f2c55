"""One file a figure or table of the reference results.

A figure's file holds its runs as configs, by scale, and what the reference says of it. To add one: a file
here and a line in FIGURES.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgewise.errors import EdgewiseError
from edgewise.experiments import compression, drift, figure2, figure3, figure4, figure5, foresight, table1
from edgewise.experiments.base import Figure, Plan
from edgewise.experiments.play import check_free, play

FIGURES: dict[str, Figure] = {
    "figure2": figure2.FIGURE,
    "figure3": figure3.FIGURE,
    "figure4": figure4.FIGURE,
    "figure5": figure5.FIGURE,
    "table1": table1.FIGURE,
    "compression": compression.FIGURE,
    "foresight": foresight.FIGURE,
    "drift": drift.FIGURE,
}
ALL = "all"  # of the reference's own:
REFERENCE = ("figure2", "figure3", "figure4", "figure5", "table1")


def plan(name: str, scale: str, *, seed: int = 0, data_dir: str | None = None) -> Plan:
    """A figure's runs at a scale, from the same first seed and data; EdgewiseError for an unknown name."""
    if name not in FIGURES:
        raise EdgewiseError(f"reproduce: {name!r} is unknown; one of: {', '.join((*FIGURES, ALL))}")
    figure = FIGURES[name]
    if scale not in figure.scales:
        raise EdgewiseError(f"--scale: {scale!r} is unknown; one of: {', '.join(figure.scales)}")
    runs = {
        run: replace(config, seed=seed + config.seed, data_dir=data_dir if config.data != "digits" else None)
        for run, config in figure.runs(scale).items()
    }
    return Plan(name, scale, figure, runs)


def write(plan: Plan, out: Path, home: Path | None = None) -> str:
    """Write the figure's files into `out` from its finished runs; returns the table, in Markdown.

    `home`: the folder that the runs were played into, where that is another.
    """
    return plan.figure.page.write(plan, (home or out) / "runs", out)


def reproduce(plan: Plan, out: Path, *, resume: bool = False, jobs: int | None = None) -> str:
    """Play a figure's runs and write its files, all into `out`; returns the table, in Markdown."""
    play(plan, out, resume=resume, jobs=jobs)
    return write(plan, out)


def reproduce_all(
    plans: list[Plan], out: Path, *, resume: bool = False, jobs: int | None = None
) -> Iterator[str]:
    """The same for several, one after another, each in its folder of `out`; yields their tables.

    Figures of one family have their runs in a folder of the family's, so that what they share is played once.
    """
    homes = [out / (plan.figure.family or plan.name) for plan in plans]
    if not resume:
        for plan, home in zip(plans, homes, strict=True):
            check_free(plan, home)  # before hours go into the first
    for plan, home in zip(plans, homes, strict=True):
        play(plan, home, resume=True, jobs=jobs)
        folder = out / plan.name
        folder.mkdir(exist_ok=True)
        yield write(plan, folder, home)


__all__ = [
    *("ALL", "FIGURES", "REFERENCE", "Figure", "Plan"),
    *("plan", "play", "reproduce", "reproduce_all", "write"),
]
