"""A figure from its runs' records: NAME.csv (every evaluation), NAME.png (curves) and NAME.md (table)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise import records
from edgewise.experiments.base import Plan
from edgewise.report.curves import Curve, draw

COLUMNS = ("run", "round", "step", "examples_seen", "accuracy", "loss", "train_loss")


@dataclass(frozen=True)
class Curves:
    """Accuracy over steps. By run: its label, in the order of the legend, and what the reference says."""

    labels: dict[str, str]
    expected: dict[str, str]

    def write(self, plan: Plan, out: Path) -> str:
        rows = {name: [r for r in records.rows(out / "runs" / name) if "accuracy" in r] for name in plan.runs}
        summaries = {name: records.summary(out / "runs" / name) or {} for name in plan.runs}
        records.write(out / f"{plan.name}.csv", _csv(rows))
        curves = [
            Curve(label, [r["step"] for r in rows[name]], [r["accuracy"] for r in rows[name]])
            for name, label in self.labels.items()
        ]
        classes = len(next(iter(summaries.values()))["per_class"])
        picture = draw(curves, plan.figure.title, subtitle(plan), chance=1 / classes)
        records.write(out / f"{plan.name}.png", picture)
        page = self._page(plan, summaries)
        records.write(out / f"{plan.name}.md", page)
        return page

    def _page(self, plan: Plan, summaries: dict[str, dict[str, Any]]) -> str:
        figure = plan.figure
        lines = [
            f"# {figure.title}",
            "",
            f"{figure.source} of the reference: {subtitle(plan)}.",
            "",
            f"The reference: {figure.statement}",
            "",
            "| run | the reference | accuracy at the end | mean of last 10 evaluations | best | seconds |",
            "|---|---|--:|--:|--:|--:|",
        ]
        for name, label in self.labels.items():
            s = summaries[name]
            numbers = [f"{s[key]:.1%}" for key in ("accuracy", "last10_accuracy", "best_accuracy")]
            lines.append(f"| {label} | {self.expected[name]} | {' | '.join(numbers)} | {s['seconds']:.0f} |")
        command = f"edgewise reproduce {plan.name} --scale {plan.scale}"
        seed = next(iter(plan.runs.values())).seed
        lines += ["", f"Command: `{command}{f' --seed {seed}' if seed else ''}`", ""]
        return "\n".join(lines)


def subtitle(plan: Plan) -> str:
    """What the runs have in common, for under the title, and their seeds."""
    config = next(iter(plan.runs.values()))
    seeds = sorted({config.seed for config in plan.runs.values()})
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    return f"{config.data}, width {config.width}, {length}, {named} ({plan.scale} scale)"


def _csv(rows: dict[str, list[dict[str, Any]]]) -> str:
    out = io.StringIO()
    lines = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    for name, evaluations in rows.items():
        lines.writerows({"run": name, **evaluation} for evaluation in evaluations)
    return out.getvalue()
