"""A figure from its runs' records: NAME.csv (every evaluation), NAME.png (curves) and NAME.md (table)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise import records
from edgewise.experiments.base import Plan
from edgewise.experiments.claims import Claim, Outcome
from edgewise.report.curves import Curve, Panel, draw_panels

COLUMNS = ("run", "round", "step", "examples_seen", "lr", "accuracy", "loss", "train_loss")
BESIDE = (
    "| run | the reference | taken to mean | accuracy at the end | mean of last 10 evaluations | best | "
    "beside the reference | seconds |"
)
CHANCE = 0.1  # of ten classes, which CIFAR-10 and the digits have


@dataclass(frozen=True)
class Curves:
    """Accuracy over steps. By run: its label, in the order of the legend, and what the reference says.

    `epochs`: over epochs in place of steps, where runs differ in their batches. `notes`: what a reader has
    to know besides, under the table. `panels`: the runs of each part of the picture, else one holds all.
    """

    labels: dict[str, str]
    expected: dict[str, Claim]
    epochs: bool = False
    notes: Callable[[Plan], str] | None = None
    panels: tuple[tuple[str, ...], ...] = ()

    def write(self, plan: Plan, runs: Path, out: Path) -> str:
        rows = {name: [r for r in records.rows(runs / name) if "accuracy" in r] for name in plan.runs}
        outcomes = {name: Outcome.read(runs / name) for name in plan.runs}
        records.write(out / f"{plan.name}.csv", evaluations(rows))
        records.write(out / f"{plan.name}.png", self._picture(plan, rows, outcomes, runs))
        page = self._page(plan, outcomes)
        records.write(out / f"{plan.name}.md", page)
        return page

    def _picture(
        self,
        plan: Plan,
        rows: Mapping[str, list[dict[str, Any]]],
        outcomes: Mapping[str, Outcome],
        runs: Path,
    ) -> bytes:
        curves = {}
        for name, label in self.labels.items():
            ended = label
            if outcomes[name].accuracy is None:  # its last evaluation follows in the label
                ended += ": diverged after" if rows[name] else ": diverged"
            places = [
                r["examples_seen"] / held(runs / name) if self.epochs else r["step"] for r in rows[name]
            ]
            curves[name] = Curve(ended, places, [r["accuracy"] for r in rows[name]])
        axis = "epochs" if self.epochs else "steps"
        panels = [Panel(axis, [curves[name] for name in names]) for names in self.panels or (curves,)]
        return draw_panels(panels, plan.figure.title, subtitle(plan), chance=CHANCE)

    def _page(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> str:
        figure = plan.figure
        lines = [
            f"# {figure.title}",
            "",
            f"{figure.source} of the reference: {subtitle(plan)}.",
            "",
            f"The reference: {figure.statement}",
            "",
            *beside(self.labels, self.expected, outcomes),
            *(["", self.notes(plan)] if self.notes else []),
            *["", f"Command: `{command(plan)}`", ""],
        ]
        return "\n".join(lines)


def beside(
    labels: Mapping[str, str], expected: Mapping[str, Claim], outcomes: Mapping[str, Outcome]
) -> list[str]:
    """The table of what the reference says of each run beside what was measured, and a word."""
    lines = [BESIDE, "|---|---|---|--:|--:|--:|---|--:|"]
    for name, claim in expected.items():
        own = outcomes[name]
        ended = f"diverged after {own.step} steps" if own.accuracy is None else percent(own.accuracy)
        cells = [labels[name], claim.words, claim.rule(labels), ended, percent(own.last10), percent(own.best)]
        lines.append(f"| {' | '.join(cells)} | {claim.verdict(own, outcomes)} | {own.seconds:.0f} |")
    return lines


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def held(folder: Path) -> int:
    """Training examples that the devices of a run hold together: what an epoch shows."""
    with (folder / records.PARTITION).open(newline="") as file:
        return sum(int(row["examples"]) for row in csv.DictReader(file))


def command(plan: Plan) -> str:
    """The command that makes this page, without where to and where from."""
    seed = min(config.seed for config in plan.runs.values())
    return f"edgewise reproduce {plan.name} --scale {plan.scale}{f' --seed {seed}' if seed else ''}"


def subtitle(plan: Plan) -> str:
    """What the runs have in common, for under the title, and their seeds."""
    config = next(iter(plan.runs.values()))
    seeds = sorted({config.seed for config in plan.runs.values()})
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    inside = "" if config.precision == "fp32" else f" in {config.precision}"
    return f"{config.data}, width {config.width}{inside}, {length}, {named} ({plan.scale} scale)"


def evaluations(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """Every evaluation of every run as CSV."""
    out = io.StringIO()
    lines = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    for name, found in rows.items():
        lines.writerows({"run": name, **evaluation} for evaluation in found)
    return out.getvalue()
