"""A table of accuracies by row and batch: NAME.csv (every run), NAME.png (over the batch) and NAME.md."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewise import records
from edgewise.experiments.base import Plan
from edgewise.experiments.claims import Claim, Outcome
from edgewise.experiments.page import CHANCE, beside, command, percent, subtitle
from edgewise.report.curves import Curve, Panel, draw_panels

COLUMNS = (
    *(
        "run",
        "recipe",
        "model",
        "norm",
        "batch",
        "images_a_step",
        "lr",
        "lr_scale",
        "schedule",
        "warmup_epochs",
    ),
    *("steps", "accuracy", "last10_accuracy", "best_accuracy", "diverged", "seconds"),
)


@dataclass(frozen=True)
class Group:
    """Columns of one recipe, a batch each. `rows`: labels by the first part of their runs' names."""

    title: str
    rows: Mapping[str, str]
    batches: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """The groups side by side; rows of the same label are one. Below, what is said of each run."""

    groups: tuple[Group, ...]
    labels: Mapping[str, str]
    expected: Mapping[str, Claim]
    notes: Callable[[Plan], str]

    def write(self, plan: Plan, runs: Path, out: Path) -> str:
        outcomes = {name: Outcome.read(runs / name) for name in plan.runs}
        records.write(out / f"{plan.name}.csv", self._csv(plan, outcomes))
        first, *others = self.groups
        curves = _curves(plan, first, outcomes)
        for group in others:
            curves += _curves(plan, group, outcomes, f" ({group.title})")
        panel = Panel("images a step", curves, log=True, words=lambda value: f"{value:,.0f}")
        at_zero = ", 0 where it diverged" if any(o.accuracy is None for o in outcomes.values()) else ""
        title, below = plan.figure.title, f"accuracy at the end{at_zero}; {subtitle(plan)}"
        records.write(out / f"{plan.name}.png", draw_panels([panel], title, below, chance=CHANCE))
        page = self._page(plan, outcomes)
        records.write(out / f"{plan.name}.md", page)
        return page

    def _csv(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> str:
        out = io.StringIO()
        lines = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
        lines.writeheader()
        for group in self.groups:
            for row in group.rows:
                for batch in group.batches:
                    if (name := f"{row}-{batch}") in plan.runs:
                        lines.writerow(_line(plan, group, name, batch, outcomes[name]))
        return out.getvalue()

    def _page(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> str:
        figure = plan.figure
        heads = [f"{group.title}: {batch}" for group in self.groups for batch in group.batches]
        lines = [f"# {figure.title}", "", f"{figure.source} of the reference: {subtitle(plan)}."]
        lines += ["", f"The reference: {figure.statement}", "", "Accuracy at the end, by batch:", ""]
        lines += [f"| | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
        for label in dict.fromkeys(label for group in self.groups for label in group.rows.values()):
            cells = [_cell(group, label, batch, outcomes) for group in self.groups for batch in group.batches]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines += ["", self.notes(plan), "", "## Beside the reference", ""]
        lines += beside(self.labels, self.expected, outcomes)
        return "\n".join([*lines, "", f"Command: `{command(plan)}`", ""])


def _line(plan: Plan, group: Group, name: str, batch: str, own: Outcome) -> dict[str, object]:
    config = plan.runs[name]
    ended = {"run": name, "recipe": group.title, "batch": batch, "steps": own.step}
    ended |= {"images_a_step": config.cohort_size * config.batch, "diverged": int(own.accuracy is None)}
    ended |= {"accuracy": own.accuracy, "last10_accuracy": own.last10, "best_accuracy": own.best}
    return {**config.flat(), **ended, "seconds": round(own.seconds, 1)}


def _cell(group: Group, label: str, batch: str, outcomes: Mapping[str, Outcome]) -> str:
    names = [f"{row}-{batch}" for row, own in group.rows.items() if own == label]
    found = [outcomes[name] for name in names if name in outcomes]
    return "" if not found else percent(found[0].accuracy) or "diverged"


def _curves(plan: Plan, group: Group, outcomes: Mapping[str, Outcome], added: str = "") -> list[Curve]:
    """Accuracy at the end over images a step, a curve a row; a run that diverged is at zero."""
    curves = []
    for row, label in group.rows.items():
        names = [f"{row}-{batch}" for batch in group.batches if f"{row}-{batch}" in plan.runs]
        sizes = [plan.runs[name].cohort_size * plan.runs[name].batch for name in names]
        curves.append(Curve(label + added, sizes, [outcomes[n].accuracy or 0.0 for n in names]))
    return curves
