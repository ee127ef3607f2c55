"""Accuracy over bytes, as a PNG: a point for every setting, and what sending everything as it is would give.

Every panel has the line of its best settings (no other is as accurate with as few bytes), the baseline's
accuracy as a dashed line, and above it the bytes as a share of the baseline's. Points are labelled where that
can be done without overlap; where it cannot, every setting gets a mark of its own in the legend.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgewise.report.curves import COLOURS, GREY
from edgewise.report.labels import place
from edgewise.report.words import round_size

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
PANEL_WIDTH, ALONE, PANEL_HEIGHT = 5.6, 8.5, 4.2  # inches; alone: of a panel as wide as the picture
TITLES = 1.2  # inches for the title and the legend
MARK = 6.5  # points
MOST_SHARES = 6  # numbers above a panel


@dataclass(frozen=True)
class Point:
    """One setting: what it sent in bytes, and the accuracy (0..1) that came of it.

    `spread` is half the length of its error bar. `group` is what shares a colour; `panel` the picture it is
    in, by title. The `baseline` is what the others of its panel are held against.
    """

    label: str
    group: str
    bytes: float
    accuracy: float
    panel: str = ""
    spread: float | None = None
    baseline: bool = False


def draw(
    points: Sequence[Point],
    title: str,
    subtitle: str,
    *,
    axis: str = "sent by the average device",
    columns: int | None = None,
) -> bytes:
    """The points as a PNG, a panel for each name of one; panels, groups and labels in the order given.

    The panels fill rows of `columns`, as many as suit their number unless told.
    """
    png = io.BytesIO()
    heading = f"{title}\n{subtitle}"
    figure = _figure(points, heading, axis, columns, labelled=True)
    if figure is None:
        figure = _figure(points, heading, axis, columns, labelled=False)
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def best(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in bytes and accuracy at once, from the fewest bytes to the most."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.bytes, -point.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def _figure(points: Sequence[Point], heading: str, axis: str, columns: int | None, *, labelled: bool) -> Any:
    """The figure, with a label at every point or with all labels in the legend; None if labels collide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(point.panel for point in points)) or [""]
    wide = columns or _columns(len(panels))
    high = math.ceil(len(panels) / wide)
    looks = _looks(points, labelled)
    legend_rows = math.ceil(len(looks) / (4 * wide))
    size = ((PANEL_WIDTH if wide > 1 else ALONE) * wide, PANEL_HEIGHT * high + TITLES + 0.2 * legend_rows)
    figure = Figure(figsize=size, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    all_axes = figure.subplots(high, wide, squeeze=False)
    for index, (name, axes) in enumerate(zip(panels, all_axes.flat, strict=False)):
        _panel(axes, name, [point for point in points if point.panel == name], looks)
        axes.set(xlabel=axis if index + wide >= len(panels) else "")
        axes.set(ylabel="test accuracy" if index % wide == 0 else "")
    for axes in all_axes.flat[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, parse_math=False)
    _legend(figure, looks, 4 * wide)
    if labelled:
        canvas.draw()  # labels are placed by where the layout puts the points
        figure.set_layout_engine("none")
        for name, axes in zip(panels, all_axes.flat, strict=False):
            if not _label(axes, [point for point in points if point.panel == name], canvas.get_renderer()):
                return None
    return figure


def _columns(panels: int) -> int:
    """As many columns as leave no gap, 2 or 3; one panel stands alone."""
    return min(panels, 3 if panels % 3 == 0 or panels > 4 else 2)


def _looks(points: Sequence[Point], labelled: bool) -> dict[str, tuple[str, str]]:
    """Colour and mark by what the legend names: the groups, or every label, coloured by its group."""
    groups = list(dict.fromkeys(point.group for point in points))
    colours = {group: COLOURS[index % len(COLOURS)] for index, group in enumerate(groups)}
    if labelled:
        return {group: (colours[group], MARKS[index % len(MARKS)]) for index, group in enumerate(groups)}
    looks: dict[str, tuple[str, str]] = {}
    used = dict.fromkeys(groups, 0)
    for point in points:
        if point.label not in looks:
            looks[point.label] = colours[point.group], MARKS[used[point.group] % len(MARKS)]
            used[point.group] += 1
    return looks


def _panel(axes: Any, name: str, points: Sequence[Point], looks: dict[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    for point in points:
        colour, mark = looks.get(point.label) or looks[point.group]
        axes.errorbar(
            point.bytes, point.accuracy, point.spread, color=colour, marker=mark, markersize=MARK, capsize=2
        )
    front = best(points)
    axes.plot([p.bytes for p in front], [p.accuracy for p in front], color=GREY, linewidth=0.8, zorder=0)
    first, last = _range([point.bytes for point in points])
    axes.set_xlim(first / 1.8, last * 1.8)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if last / first < 100 else (1,), numticks=12))
    axes.xaxis.set_major_formatter(lambda value, _: round_size(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(name, loc="left", fontsize=10, parse_math=False)
    for base in (point for point in points if point.baseline):
        axes.axhline(base.accuracy, color="#1b1b1b", linestyle="--", linewidth=0.9, zorder=0)
        _shares(axes, base.bytes)


def _range(bytes: Sequence[float]) -> tuple[float, float]:
    return min(bytes, default=1.0), max(bytes, default=10.0)


def _shares(axes: Any, whole: float) -> None:
    """A second axis above the panel: bytes as a share of the baseline's."""
    first, last = axes.get_xlim()
    parts = [factor * 10**power for power in range(10) for factor in (1, 2, 5)]
    seen = [part for part in parts if first <= whole / part <= last]
    if len(seen) > MOST_SHARES:
        seen = [part for part in seen if math.log10(part) % 1 == 0]
    above = axes.secondary_xaxis("top")
    above.set_xticks([whole / part for part in seen])
    above.set_xticklabels(["1" if part == 1 else f"1/{part:,}" for part in seen])
    above.set_xticks([], minor=True)
    above.tick_params(labelsize=8, colors="#555555")
    above.spines["top"].set_visible(False)


def _legend(figure: Any, looks: dict[str, tuple[str, str]], columns: int) -> None:
    from matplotlib.lines import Line2D

    if len(looks) > 1:
        marks = [
            Line2D([], [], color=colour, marker=mark, linestyle="", label=label)
            for label, (colour, mark) in looks.items()
        ]
        figure.legend(handles=marks, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)


def _label(axes: Any, points: Sequence[Point], renderer: Any) -> bool:
    """Label every point of a panel, the most accurate first; whether there was room."""
    first, last = axes.get_xlim()
    lines = [((first, p.accuracy), (last, p.accuracy)) for p in points if p.baseline]
    lines += [((a.bytes, a.accuracy), (b.bytes, b.accuracy)) for a, b in pairwise(best(points))]
    lines += [
        ((p.bytes, p.accuracy - p.spread), (p.bytes, p.accuracy + p.spread)) for p in points if p.spread
    ]
    ordered = sorted(points, key=lambda point: -point.accuracy)
    labels = [((point.bytes, point.accuracy), point.label) for point in ordered]
    return place(axes, labels, lines, MARK, renderer)
