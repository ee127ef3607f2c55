"""Labels beside points, without overlap: the first free place near each, tried in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.report.curves import GREY

Place = tuple[float, float]
Boxes = NDArray[np.float64]  # (N, 4): left, bottom, right, top, in pixels

# Where a label is tried, in points from its mark: near before far, beside before above and below.
DISTANCES = (7, 14, 24, 36)
DIRECTIONS = ((1, 0), (-1, 0), (1, 0.7), (1, -0.7), (-1, 0.7), (-1, -0.7), (0, 1), (0, -1))
STRIDE = 6  # pixels between the boxes that stand for a line


def place(
    axes: Any,
    labels: Sequence[tuple[Place, str]],
    lines: Sequence[tuple[Place, Place]],
    mark: float,
    renderer: Any,
) -> bool:
    """Write each label beside its point, clear of marks (`mark` points wide) and other labels.

    Where there is room it is clear of `lines` too; points and lines are in the data's units. False, with some
    labels left out, if one finds no place at all.
    """
    from matplotlib.patheffects import withStroke

    marks = _around(axes.transData.transform([at for at, _ in labels]), mark / 2 * renderer.dpi / 72)
    avoided = np.concatenate([np.empty((0, 4)), *(_along(axes, *line) for line in lines)])
    for at, words in labels:
        text = axes.annotate(
            words, at, (0, 0), textcoords="offset points", fontsize=8, color="#333333", parse_math=False
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # where it lies on a line
        found = _free(text, axes, np.concatenate([marks, avoided]), renderer)
        found = found or _free(text, axes, marks, renderer)
        if found is None:
            return False
        offset, box = found
        marks = np.concatenate([marks, box])
        if max(map(abs, offset)) > DISTANCES[0]:
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", at, offset, textcoords="offset points", arrowprops=line)
    return True


def _free(text: Any, axes: Any, taken: Boxes, renderer: Any) -> tuple[Place, Boxes] | None:
    """Put a label where nothing is; its place and its box, or None if there is no such place."""
    frame = axes.get_window_extent(renderer)
    for offset, ha, va in _places():
        text.set(position=offset, ha=ha, va=va)
        box = text.get_window_extent(renderer)
        inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
        left, bottom, right, top = taken.T
        hit = (left < box.x1) & (right > box.x0) & (bottom < box.y1) & (top > box.y0)
        if inside and not hit.any():
            return offset, np.array([box.extents])
    return None


def _places() -> Iterator[tuple[Place, str, str]]:
    """Places for a label, each with its alignment towards the mark."""
    sides = {1: "left", -1: "right", 0: "center"}
    for distance in DISTANCES:
        for x, y in DIRECTIONS:
            va = "center" if y == 0 else "bottom" if y > 0 else "top"
            yield (x * distance, y * distance), sides[x], va


def _along(axes: Any, begin: Place, end: Place) -> Boxes:
    """Small boxes along a line."""
    first, last = axes.transData.transform([begin, end])
    count = int(np.abs(last - first).sum()) // STRIDE + 2
    return _around(np.linspace(first, last, count), 1.0)


def _around(places: NDArray[np.float64], half: float) -> Boxes:
    """Boxes around places (N, 2) in pixels."""
    places = np.reshape(places, (-1, 2))
    return np.concatenate([places - half, places + half], axis=1)
