"""The page of a forecast: what inspect says of each split beside what training showed, and the ROC curve."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewise import records
from edgewise.assemble import assemble
from edgewise.data.skew import BREAKS, skew
from edgewise.errors import EdgewiseWarning
from edgewise.experiments.base import Plan
from edgewise.experiments.page import subtitle
from edgewise.inspection.statistics import layer_gaps

FAILS = 0.10  # of accuracy lost against IID data


@dataclass(frozen=True)
class Split:
    """One split: the score that inspect gives it, other numbers of it, and the accuracy that it cost."""

    name: str
    score: float
    divergence: float
    times: float  # median over norms of gap / chance
    accuracy: float
    loss: float

    @property
    def failed(self) -> bool:
        return self.loss > FAILS


@dataclass(frozen=True)
class Forecast:
    """By split, the run called `iid` being what the others are held against."""

    iid: str = "iid"

    def write(self, plan: Plan, runs: Path, out: Path) -> str:
        accuracies = {n: (records.summary(runs / n) or {})["accuracy"] for n in plan.runs}
        splits = []
        for name, config in plan.runs.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EdgewiseWarning)
                parts = assemble(replace(config, kernels="torch"))  # for a few batches
            assert parts.held is not None  # it is simulated
            found = skew(parts.held)
            gaps = sorted(gap.times for gap in layer_gaps(parts, range(config.devices)))
            loss = accuracies[self.iid] - accuracies[name]
            times = gaps[len(gaps) // 2]
            splits.append(Split(name, found.apart, found.divergence, times, accuracies[name], loss))
        splits.sort(key=lambda split: -split.score)
        records.write(out / f"{plan.name}.csv", _csv(splits))
        records.write(out / f"{plan.name}.png", _picture(splits, plan))
        page = _page(splits, plan)
        records.write(out / f"{plan.name}.md", page)
        return page


def area(scores: Sequence[float], failed: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a split that failed has the higher score (ties count half)."""
    bad = [s for s, f in zip(scores, failed, strict=True) if f]
    good = [s for s, f in zip(scores, failed, strict=True) if not f]
    if not bad or not good:
        return float("nan")
    wins = sum((b > g) + (b == g) / 2 for b in bad for g in good)
    return wins / (len(bad) * len(good))


def _csv(splits: Sequence[Split]) -> str:
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["split", "score", "label_divergence", "gap_times_chance", "accuracy", "loss", "failed"])
    for s in splits:
        numbers = [f"{v:.4f}" for v in (s.score, s.divergence, s.times, s.accuracy, s.loss)]
        lines.writerow([s.name, *numbers, int(s.failed)])
    return out.getvalue()


def _page(splits: Sequence[Split], plan: Plan) -> str:
    failed = [s.failed for s in splits]
    areas = {
        "score": area([s.score for s in splits], failed),
        "label divergence alone": area([s.divergence for s in splits], failed),
        "measured gap alone": area([s.times for s in splits], failed),
    }
    right = sum((s.score >= BREAKS) == s.failed for s in splits)
    lines = [
        f"# {plan.figure.title}",
        "",
        f"{subtitle(plan)}. A split fails if it costs more than {FAILS:.0%} of accuracy against `iid`.",
        "",
        f"Area under the ROC curve over {len(splits)} splits, {sum(failed)} of which fail: "
        + ", ".join(f"{name} **{value:.3f}**" for name, value in areas.items())
        + f". At the threshold {BREAKS:g} the forecast is right for {right} of {len(splits)}.",
        "",
        "| split | score | label divergence | gap, times chance | accuracy | points lost | forecast |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for s in splits:
        told = "fails" if s.score >= BREAKS else "holds"
        mark = "right" if (s.score >= BREAKS) == s.failed else "**wrong**"
        numbers = (
            f"{s.score:.3f} | {s.divergence:.2f} | {s.times:.1f} | {s.accuracy:.1%} | {100 * s.loss:.1f}"
        )
        lines.append(f"| {s.name} | {numbers} | {told}: {mark} |")
    command = f"edgewise reproduce {plan.name} --scale {plan.scale}"
    return "\n".join([*lines, "", f"Command: `{command}`", ""])


def _picture(splits: Sequence[Split], plan: Plan) -> bytes:
    """Points lost over score, and the ROC curve, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    colours = ["#d55e00" if s.failed else "#0072b2" for s in splits]
    left.scatter([s.score for s in splits], [100 * s.loss for s in splits], c=colours, s=28)
    left.axhline(100 * FAILS, color="#888888", linestyle=":", linewidth=1)
    left.axvline(BREAKS, color="#888888", linestyle=":", linewidth=1)
    left.set(
        xlabel="score: class pairs that meet on no device", ylabel="points of accuracy lost", xlim=(0, 1.02)
    )
    left.set_title(subtitle(plan), loc="left", fontsize=9)
    _roc(right, splits)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def _roc(axes: Any, splits: Sequence[Split]) -> None:
    """The curve over every threshold; splits of one score are passed together."""
    bad, good = sum(s.failed for s in splits), sum(not s.failed for s in splits)
    points = [(0.0, 0.0)]
    for threshold in sorted({s.score for s in splits}, reverse=True):
        above = [s for s in splits if s.score >= threshold]
        hits = sum(s.failed for s in above)
        points.append(((len(above) - hits) / max(good, 1), hits / max(bad, 1)))
    axes.plot(*zip(*points, strict=True), color="#d55e00", marker="o", markersize=3)
    axes.plot([0, 1], [0, 1], color="#888888", linestyle=":", linewidth=1)
    axes.set(xlabel="false alarms", ylabel="failures foreseen", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    curve = area([s.score for s in splits], [s.failed for s in splits])
    axes.set_title(f"area {curve:.3f}", loc="left", fontsize=9)
