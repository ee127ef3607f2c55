"""One file a figure or table of the reference results.

A figure's file holds its runs as configs, by scale, and what the reference says of it. To add one: a file
here and a line in FIGURES.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgewise.errors import EdgewiseError
from edgewise.experiments import compression, drift, figure2, foresight
from edgewise.experiments.base import Figure, Plan
from edgewise.experiments.play import play

FIGURES: dict[str, Figure] = {
    "figure2": figure2.FIGURE,
    "compression": compression.FIGURE,
    "foresight": foresight.FIGURE,
    "drift": drift.FIGURE,
}


def plan(name: str, scale: str, *, seed: int = 0, data_dir: str | None = None) -> Plan:
    """A figure's runs at a scale, from the same first seed and data; EdgewiseError for an unknown name."""
    if name not in FIGURES:
        raise EdgewiseError(f"reproduce: {name!r} is unknown; one of: {', '.join(FIGURES)}")
    figure = FIGURES[name]
    if scale not in figure.scales:
        raise EdgewiseError(f"--scale: {scale!r} is unknown; one of: {', '.join(figure.scales)}")
    runs = {
        run: replace(config, seed=seed + config.seed, data_dir=data_dir if config.data != "digits" else None)
        for run, config in figure.runs(scale).items()
    }
    return Plan(name, scale, figure, runs)


def write(plan: Plan, out: Path) -> str:
    """Write the figure's files into `out` from its finished runs; returns the table, in Markdown."""
    return plan.figure.page.write(plan, out)


__all__ = ["FIGURES", "Figure", "Plan", "plan", "play", "write"]
