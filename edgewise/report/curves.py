"""Accuracy over steps, bytes or time, as a PNG: one panel each, every curve labelled at its end."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = (
    "#1b1b1b",
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#e69f00",
)  # safe for colour-blind eyes
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # line and mark, once the colours are used up
GREY = "#888888"

WIDTH, HEIGHT, LINE = 8.5, 4.1, 0.19  # of the picture, of a panel, of a label; in inches
BARE, LETTER = 5.9, 0.082  # of the picture without labels, of a letter of one
MARGIN = 0.9  # of the picture beside its panels: title and axis


@dataclass(frozen=True)
class Curve:
    """One line: its label, steps (or what else its panel is over) and accuracies in 0..1."""

    label: str
    steps: Sequence[float]
    accuracies: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Curves over one axis; `words` gives its numbers their text, `log` leaves out what is not above 0.

    `measure`: what the curves show, from `low` to 1, in per cent or as plain numbers.
    """

    axis: str
    curves: Sequence[Curve]
    log: bool = False
    words: Callable[[float], str] | None = None
    measure: str = "test accuracy"
    percent: bool = True
    low: float = 0.0


def draw(curves: Sequence[Curve], title: str, subtitle: str, *, chance: float | None) -> bytes:
    """The curves over steps as a PNG, each labelled at its end; a dotted line at chance."""
    return draw_panels([Panel("steps", curves)], title, subtitle, chance=chance)


def draw_panels(panels: Sequence[Panel], title: str, subtitle: str, *, chance: float | None) -> bytes:
    """The panels one below the other as a PNG. A curve has the same look in all of them, by its place."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max((len(panel.curves) for panel in panels), default=0)
    height = max(HEIGHT, LINE * (most + 1))
    longest = max((len(curve.label) for panel in panels for curve in panel.curves), default=0)
    width = max(WIDTH, BARE + LETTER * longest)
    figure = Figure(figsize=(width, MARGIN + height * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for panel, axes in zip(panels, all_axes, strict=True):
        _panel(axes, panel, chance, LINE / height)
    # parse_math: names of runs may hold dollar signs.
    all_axes[0].set_title(f"{title}\n", loc="left", fontsize=11, parse_math=False)
    all_axes[0].text(
        0, 1.02, subtitle, transform=all_axes[0].transAxes, fontsize=9, color="#555555", parse_math=False
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def _panel(axes: Any, panel: Panel, chance: float | None, gap: float) -> None:
    shown = [_shown(curve, panel.log) for curve in panel.curves]
    lasts = [curve.accuracies[-1] if curve.accuracies else 0.0 for curve in shown]
    texts = _percentages(lasts) if panel.percent else [f"{value:.2f}" for value in lasts]
    span = 1 - panel.low
    heights = [panel.low + span * place for place in apart([(y - panel.low) / span for y in lasts], gap)]
    side = axes.get_yaxis_transform()  # x as a share of the axes, y an accuracy
    for index, (curve, last, height) in enumerate(zip(shown, lasts, heights, strict=True)):
        colour, (line, mark) = COLOURS[index % len(COLOURS)], LOOKS[index // len(COLOURS) % len(LOOKS)]
        axes.plot(curve.steps, curve.accuracies, color=colour, linestyle=line, linewidth=1.8)
        label = f"{curve.label}  {texts[index]}" if curve.accuracies else curve.label
        axes.text(
            1.04, height, label, transform=side, color=colour, fontsize=9, va="center", parse_math=False
        )
        if curve.accuracies:
            dots: dict[str, Any] = {"color": colour, "marker": mark, "markersize": 3.5, "clip_on": False}
            axes.plot(curve.steps[-1], last, **dots)
            axes.plot([1.003, 1.025], [last, height], transform=side, linewidth=0.7, markevery=[1], **dots)
    if chance is not None:
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=1)
        axes.text(0.005, chance + 0.01, "chance", transform=side, color=GREY, fontsize=8)
    axes.set(ylim=(panel.low, 1), xlabel=panel.axis, ylabel=panel.measure)
    if panel.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    _scale(axes, panel, shown)
    _lead(axes, shown)


def _shown(curve: Curve, log: bool) -> Curve:
    pairs = [(x, y) for x, y in zip(curve.steps, curve.accuracies, strict=True) if x > 0 or not log]
    return Curve(curve.label, [x for x, _ in pairs], [y for _, y in pairs])


def _scale(axes: Any, panel: Panel, shown: Sequence[Curve]) -> None:
    """The horizontal axis: where it begins and ends, and its numbers."""
    last = max((curve.steps[-1] for curve in shown if curve.steps), default=1)
    if panel.log:
        from matplotlib.ticker import LogLocator, NullFormatter

        first = min((curve.steps[0] for curve in shown if curve.steps), default=last / 10)
        axes.set_xscale("log")
        axes.set_xlim(min(first, last / 10), last)
        few = last / first < 1000
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, last)
    if panel.words:
        words = panel.words
        axes.xaxis.set_major_formatter(lambda value, _: words(value))


def _lead(axes: Any, shown: Sequence[Curve]) -> None:
    """Faint lines from where curves end to their labels at the side."""
    right = axes.get_xlim()[1]
    for index, curve in enumerate(shown):
        if curve.steps and curve.steps[-1] < right:
            ends, colour = [curve.accuracies[-1]] * 2, COLOURS[index % len(COLOURS)]
            axes.plot([curve.steps[-1], right], ends, color=colour, linewidth=0.6, alpha=0.5, zorder=1)


def _percentages(values: Sequence[float]) -> list[str]:
    """Whole percentages, with one decimal where different values would look the same."""
    whole = [f"{value:.0%}" for value in values]
    return whole if len(set(whole)) == len(set(values)) else [f"{value:.1%}" for value in values]


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values in 0..1, moved as little as keeps labels this far apart and, where they fit, inside."""
    placed = [0.0] * len(values)
    order = sorted(range(len(values)), key=lambda index: -values[index])
    ceiling = float("inf")
    for index in order:
        placed[index] = ceiling = min(values[index], ceiling - gap)
    floor = 0.0
    for index in reversed(order):
        placed[index] = max(placed[index], floor)
        floor = placed[index] + gap
    return placed
