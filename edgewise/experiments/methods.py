"""A figure of methods by K and split: NAME.csv (every run), NAME.png (curves at one K) and NAME.md (tables).

Runs that differ in their seed alone are one row. A row is held, seed by seed, against plain federated
averaging on IID data and against its own method on IID data, with the 95 % interval of the mean difference.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise import records
from edgewise.experiments.base import Plan
from edgewise.experiments.page import subtitle
from edgewise.report.curves import Curve, draw
from edgewise.report.words import size

COLUMNS = (
    *("run", "method", "sync_every", "pairing", "seed", "steps", "rounds", "bytes_up", "bytes_down"),
    *("accuracy", "last10_accuracy", "best_accuracy", "seconds"),
)
HEAD = (
    "| method | split | seeds | accuracy at the end | mean of last 10 evaluations | best | "
    "sent by a device | from fedavg on IID, points | from itself on IID, points |"
)
IID = "iid"
# 97.5 % points of Student's t by degrees of freedom (any table of it).
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True, order=True)
class Cell:
    """What the runs of a row share: the method, K and how classes are paired."""

    method: str
    every: int
    pairing: str


@dataclass(frozen=True)
class Methods:
    """`cell`: what a run of the figure is one of, by its name. `plain`: the method all are held against.

    `shown`: the method, pairing and label of each curve, at `every`(scale) steps a round.
    """

    cell: Callable[[str], Cell]
    plain: str
    every: Callable[[str], int]
    shown: Sequence[tuple[str, str, str]]

    def write(self, plan: Plan, runs: Path, out: Path) -> str:
        summaries = {name: records.summary(runs / name) or {} for name in plan.runs}
        rows: dict[Cell, dict[int, dict[str, Any]]] = {}
        for name, config in plan.runs.items():
            rows.setdefault(self.cell(name), {})[config.seed] = summaries[name]
        records.write(out / f"{plan.name}.csv", self._csv(plan, summaries))
        curves = [curve for curve in map(lambda s: self._curve(plan, runs, *s), self.shown) if curve]
        picture = draw(
            curves, plan.figure.title, f"K = {self.every(plan.scale)}, {subtitle(plan)}", chance=0.1
        )
        records.write(out / f"{plan.name}.png", picture)
        page = self._page(plan, rows)
        records.write(out / f"{plan.name}.md", page)
        return page

    def _curve(self, plan: Plan, folder: Path, method: str, pairing: str, label: str) -> Curve | None:
        """The mean over seeds of a method's accuracy over steps."""
        wanted = Cell(method, self.every(plan.scale), pairing)
        names = [name for name in plan.runs if self.cell(name) == wanted]
        if not names:
            return None
        runs = [[row for row in records.rows(folder / name) if "accuracy" in row] for name in names]
        steps = [row["step"] for row in runs[0]]
        return Curve(label, steps, [mean([run[i]["accuracy"] for run in runs]) for i in range(len(steps))])

    def _csv(self, plan: Plan, summaries: dict[str, dict[str, Any]]) -> str:
        out = io.StringIO()
        lines = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
        lines.writeheader()
        for name, config in plan.runs.items():
            cell = self.cell(name)
            own = {"run": name, "method": cell.method, "pairing": cell.pairing, "seed": config.seed}
            lines.writerow({**summaries[name], **own, "sync_every": cell.every})
        return out.getvalue()

    def _page(self, plan: Plan, rows: dict[Cell, dict[int, dict[str, Any]]]) -> str:
        figure = plan.figure
        lines = [f"# {figure.title}", "", f"{figure.source}: {subtitle(plan)}.", "", figure.statement]
        for every in sorted({cell.every for cell in rows}):
            lines += ["", f"## K = {every}", "", HEAD, "|---|---|--:|--:|--:|--:|--:|--:|--:|"]
            lines += [self._row(plan, cell, rows) for cell in rows if cell.every == every]
        seed = min(config.seed for config in plan.runs.values())
        command = f"edgewise reproduce {plan.name} --scale {plan.scale}{f' --seed {seed}' if seed else ''}"
        return "\n".join([*lines, "", f"Command: `{command}`", ""])

    def _row(self, plan: Plan, cell: Cell, rows: dict[Cell, dict[int, dict[str, Any]]]) -> str:
        own = rows[cell]
        numbers = [
            f"{mean(values):.1%}" + spread(values)
            for values in ([s[key] for s in own.values()] for key in MEASURES)
        ]
        devices = next(iter(plan.runs.values())).cohort_size
        sent = size(mean([s["bytes_up"] for s in own.values()]) / devices)
        apart = [
            difference(own, rows.get(Cell(method, cell.every, IID), {}))
            for method in (self.plain, cell.method)
        ]
        columns = [cell.method, cell.pairing, str(len(own)), *numbers, sent, *apart]
        return f"| {' | '.join(columns)} |"


MEASURES = ("accuracy", "last10_accuracy", "best_accuracy")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> str:
    """(lowest to highest), where there are several."""
    return f" ({min(values):.1%} to {max(values):.1%})" if len(values) > 1 else ""


def difference(own: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> str:
    """Points of accuracy above `other`, summaries by seed, over the seeds of both; with a 95 % interval."""
    if own is other:
        return ""
    points = [100 * (own[s]["accuracy"] - other[s]["accuracy"]) for s in sorted(own.keys() & other.keys())]
    if not points:
        return ""
    middle = mean(points)
    if len(points) - 1 not in STUDENT:
        return f"{middle:+.1f}"
    variance = sum((point - middle) ** 2 for point in points) / (len(points) - 1)
    half = STUDENT[len(points) - 1] * (variance / len(points)) ** 0.5
    return f"{middle:+.1f} ({middle - half:+.1f} to {middle + half:+.1f})"


__all__ = ["Cell", "Methods", "difference"]
