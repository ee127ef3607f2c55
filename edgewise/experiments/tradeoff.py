"""A figure of accuracy against bytes: NAME.csv (every run), NAME.png (the frontier) and NAME.md (table).

Runs that differ in their seed alone are one point. A point is held against the one of its panel that sends
everything as it is, seed by seed, and against sync-sgd that does, which is what compression and several
local steps save together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewise import codecs, records, specs
from edgewise.algorithms import text
from edgewise.config import Config
from edgewise.data.partition import PARTITIONS
from edgewise.experiments.base import Plan
from edgewise.experiments.page import subtitle
from edgewise.report.frontier import Point, draw
from edgewise.report.words import size

COLUMNS = (
    *("run", "algorithm", "sync_every", "partition", "codec", "codec_down", "seed", "steps", "rounds"),
    *("bytes_up", "bytes_down", "accuracy", "last10_accuracy", "best_accuracy", "seconds"),
)
HEAD = (
    "| codec | seeds | sent by a device | of uncompressed | of uncompressed sync-sgd | accuracy | "
    "less than uncompressed, points |"
)


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone: what a device sent, and the accuracies by seed."""

    panel: str
    config: Config
    sent: float
    accuracies: dict[int, float]

    @property
    def label(self) -> str:
        down = codecs.text(self.config.codec_down, feedback=False)
        return codecs.text(self.config.codec) + (f", {down} down" if down != "none" else "")

    @property
    def mean(self) -> float:
        return sum(self.accuracies.values()) / len(self.accuracies)

    def loss(self, base: Cell) -> list[float]:
        """Points of accuracy lost against another cell, by the seeds that both have."""
        shared = sorted(self.accuracies.keys() & base.accuracies.keys())
        return [100 * (base.accuracies[seed] - self.accuracies[seed]) for seed in shared]


@dataclass(frozen=True)
class Tradeoff:
    """Accuracy over what a device sent, a panel for each algorithm and partition."""

    def write(self, plan: Plan, runs: Path, out: Path) -> str:
        summaries = {name: records.summary(runs / name) or {} for name in plan.runs}
        cells = gather(plan, summaries)
        records.write(out / f"{plan.name}.csv", _csv(plan, summaries))
        points = [
            Point(
                label=cell.label,
                group=codecs.text(codecs.inner(cell.config.codec)).split(":")[0],
                bytes=cell.sent,
                accuracy=cell.mean,
                panel=cell.panel,
                spread=_half(list(cell.accuracies.values())),
                baseline=cell is _base(cells, cell),
            )
            for cell in cells
        ]
        records.write(out / f"{plan.name}.png", draw(points, plan.figure.title, subtitle(plan)))
        page = _page(plan, cells)
        records.write(out / f"{plan.name}.md", page)
        return page


def gather(plan: Plan, summaries: dict[str, dict[str, Any]]) -> list[Cell]:
    """The runs' cells, in the order of the plan."""
    found: dict[Config, list[str]] = {}
    for name, config in plan.runs.items():
        found.setdefault(replace(config, seed=0), []).append(name)
    return [
        Cell(
            panel_of(config),
            config,
            sum(summaries[name]["bytes_up"] for name in names) / len(names) / config.cohort_size,
            {plan.runs[name].seed: summaries[name]["accuracy"] for name in names},
        )
        for config, names in found.items()
    ]


def panel_of(config: Config) -> str:
    """What the runs of a panel share: "fedavg, K = 10, labels:2"."""
    algorithm = text(config.algorithm)
    every = f", K = {config.algorithm.sync_every}" if config.algorithm.sync_every > 1 else ""
    return f"{algorithm}{every}, {specs.text(PARTITIONS, config.partition)}"


def _base(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    """The cell of the same panel that sends everything as it is."""
    return next((one for one in cells if one.panel == cell.panel and one.label == "none"), None)


def _half(values: Sequence[float]) -> float | None:
    return (max(values) - min(values)) / 2 if len(values) > 1 else None


def _csv(plan: Plan, summaries: dict[str, dict[str, Any]]) -> str:
    out = io.StringIO()
    lines = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    for name, config in plan.runs.items():
        lines.writerow({"run": name, **config.flat(), **summaries[name]})
    return out.getvalue()


def _page(plan: Plan, cells: Sequence[Cell]) -> str:
    figure = plan.figure
    lines = [f"# {figure.title}", "", f"{figure.source}: {subtitle(plan)}.", "", figure.statement]
    whole = next((c.sent for c in cells if c.panel.startswith("sync-sgd") and c.label == "none"), None)
    for panel in dict.fromkeys(cell.panel for cell in cells):
        lines += ["", f"## {panel}", "", HEAD, "|---|--:|--:|--:|--:|--:|--:|"]
        lines += [_row(cell, _base(cells, cell), whole) for cell in cells if cell.panel == panel]
    seed = min(config.seed for config in plan.runs.values())
    command = f"edgewise reproduce {plan.name} --scale {plan.scale}{f' --seed {seed}' if seed else ''}"
    return "\n".join([*lines, "", f"Command: `{command}`", ""])


def _row(cell: Cell, base: Cell | None, whole: float | None) -> str:
    shares = [_share(cell.sent, base.sent if base else None), _share(cell.sent, whole)]
    loss = cell.loss(base) if base and base is not cell else []
    accuracy = f"{cell.mean:.1%}" + _range([100 * value for value in cell.accuracies.values()])
    lost = f"{sum(loss) / len(loss):+.1f}" + _range(loss) if loss else ""
    return (
        f"| {cell.label} | {len(cell.accuracies)} | {size(cell.sent)} | "
        f"{' | '.join(shares)} | {accuracy} | {lost} |"
    )


def _share(sent: float, whole: float | None) -> str:
    return "" if whole is None else f"1/{whole / sent:,.0f}" if sent < whole else "1"


def _range(values: Sequence[float]) -> str:
    return f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
