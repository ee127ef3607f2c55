"""Accuracy over steps, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = (
    "#1b1b1b",
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#e69f00",
)  # safe for colour-blind eyes


@dataclass(frozen=True)
class Curve:
    """One line: its label, steps, and accuracies in 0..1."""

    label: str
    steps: Sequence[int]
    accuracies: Sequence[float]


def draw(curves: Sequence[Curve], title: str, subtitle: str, *, chance: float) -> bytes:
    """The curves as a PNG, each labelled at its end; a dotted line at chance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    last = max((curve.steps[-1] for curve in curves if curve.steps), default=1)
    ends = _apart([curve.accuracies[-1] if curve.accuracies else 0.0 for curve in curves], 0.045)
    for curve, colour, end in zip(curves, COLOURS, ends, strict=False):
        axes.plot(curve.steps, curve.accuracies, color=colour, linewidth=1.8)
        axes.annotate(
            f"{curve.label}  {curve.accuracies[-1]:.0%}" if curve.accuracies else curve.label,
            xy=(last, curve.accuracies[-1] if curve.accuracies else 0.0),
            xytext=(last * 1.02, end),
            color=colour,
            fontsize=9,
            va="center",
        )
    axes.axhline(chance, color="#888888", linestyle=":", linewidth=1)
    axes.text(0, chance + 0.01, "chance", color="#888888", fontsize=8)
    axes.set(xlim=(0, last), ylim=(0, 1), xlabel="steps", ylabel="test accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{title}\n", loc="left", fontsize=11)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color="#555555")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved as little as keeps labels from overlapping (from the top down)."""
    placed = [0.0] * len(values)
    ceiling = float("inf")
    for index in sorted(range(len(values)), key=lambda i: -values[i]):
        placed[index] = ceiling = min(values[index], ceiling - gap)
    return placed
