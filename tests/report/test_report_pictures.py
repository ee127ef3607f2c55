"""Pictures: labels that keep apart, many runs, and the frontier."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edgewise.report import curves, frontier
from edgewise.report.curves import Curve, Panel, apart, draw, draw_panels
from edgewise.report.frontier import Point, best
from edgewise.report.labels import place

FAST = settings(derandomize=True, deadline=None, max_examples=100)


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    wide, high = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return wide, high


@FAST
@given(st.lists(st.floats(0, 1), max_size=20))
def test_labels_keep_apart_and_inside(values: list[float]) -> None:
    placed = apart(values, 0.045)
    ordered = sorted(placed)
    assert all(high - low >= 0.045 - 1e-9 for low, high in pairwise(ordered))
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in placed)
    by_value = sorted(range(len(values)), key=lambda index: values[index])
    assert [placed[i] for i in by_value] == pytest.approx(ordered) or len(set(values)) < len(values)


def test_labels_with_room_stay_where_they_are() -> None:
    assert apart([0.1, 0.9, 0.5], 0.045) == [0.1, 0.9, 0.5]


@pytest.mark.parametrize("count", [0, 1, 7, 12, 30])
def test_as_many_curves_as_there_are(count: int) -> None:
    drawn = [Curve(f"run {i} $x_{i}$ [b]", [1, 2, 3], [0.1, 0.2, 0.5 + i / 100]) for i in range(count)]
    wide, high = size(draw(drawn, "a title, $5", "a subtitle", chance=0.1))
    assert wide >= 1000 and high >= 600
    assert high > 800 or count < 30  # thirty labels need a taller picture


def test_panels_share_the_look_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    keep = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), keep(self, *a, **k))[1]
    )
    lines = [Curve(f"run {i}", [1, 10, 100 + i], [0.1, 0.2, i / 12]) for i in range(12)]
    lines.append(Curve("nothing yet", [], []))
    panels = [Panel("steps", lines), Panel("bytes", lines, log=True, words=lambda v: f"{v:g} B")]
    draw_panels(panels, "t", "s", chance=None)
    first, second = figures[0].axes
    looks = [
        [(line.get_color(), line.get_linestyle()) for line in axes.lines[::3]] for axes in (first, second)
    ]
    assert looks[0][:12] == looks[1][:12] and len(set(looks[0][:12])) == 12
    assert (first.get_xscale(), second.get_xscale()) == ("linear", "log")
    assert second.xaxis.get_major_formatter()(10) == "10 B"
    shown = {text.get_text() for text in second.texts}
    assert {"run 11  92%", "run 0  0%", "nothing yet"} <= shown


def test_ends_that_would_look_alike_get_a_decimal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert curves._percentages([0.751, 0.6]) == ["75%", "60%"]
    assert curves._percentages([0.751, 0.754, 0.6]) == ["75.1%", "75.4%", "60.0%"]
    assert curves._percentages([0.75, 0.75]) == ["75%", "75%"]


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    png = draw_panels([Panel("x", [Curve("a", [0, 1, 10], [0, 0.1, 0.2])], log=True)], "t", "s", chance=0.5)
    assert size(png)


# ---- the frontier ----

SETTINGS = {"none": 1, "fp16": 2, "bf16": 2, "int8": 4, "topk:0.01": 100, "sign": 32, "powersgd:1": 300}
POINTS = [
    Point(
        name,
        name[:2],
        1e9 / share,
        0.7 - 0.0001 * share + 0.01 * number,
        panel,
        None if number else 0.01,
        baseline=name == "none",
    )
    for number, panel in enumerate(["IID", "2 classes a device"])
    for name, share in SETTINGS.items()
]


def test_the_best_are_those_that_none_beats() -> None:
    points = [
        Point(name, "", size, accuracy)
        for name, size, accuracy in [
            ("a", 10, 0.5),
            ("b", 20, 0.4),
            ("c", 30, 0.6),
            ("d", 30, 0.55),
            ("e", 5, 0.1),
            ("f", 40, 0.6),
        ]
    ]
    assert [point.label for point in best(points)] == ["e", "a", "c"]


@pytest.mark.parametrize(("panels", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (7, 3)])
def test_panels_fill_rows(panels: int, columns: int) -> None:
    assert frontier._columns(panels) == columns


@pytest.mark.parametrize(("panels", "columns"), [(0, None), (1, None), (3, 2)])
def test_a_picture_of_any_number_of_panels(panels: int, columns: int | None) -> None:
    drawn = [Point("a", "g", 10, 0.5, str(number)) for number in range(panels)]
    wide, high = size(frontier.draw(drawn, "t", "s", columns=columns))
    assert wide == pytest.approx(130 * (2 * 5.6 if columns else 8.5), abs=1)
    assert (high > 1000) == (panels == 3)


def figure(points: list[Point], labelled: bool = True) -> Any:
    return frontier._figure(points, "t\ns", "bytes", None, labelled=labelled)


def test_every_point_is_labelled_and_no_labels_meet() -> None:
    drawn = figure(POINTS)
    for axes in drawn.axes[:2]:
        texts = [text for text in axes.texts if text.get_text()]
        assert sorted(text.get_text() for text in texts) == sorted(SETTINGS)
        boxes = [text.get_window_extent(drawn.canvas.get_renderer()) for text in texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert [text.get_text() for text in drawn.legends[0].texts] == ["no", "fp", "bf", "in", "to", "si", "po"]


def test_the_baseline_is_a_dashed_line_and_the_whole_of_the_shares() -> None:
    axes = figure(POINTS).axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [set(line.get_ydata()) for line in dashed] == [{0.7 - 0.0001}]
    (above,) = axes.child_axes
    ticks = dict(zip([t.get_text() for t in above.get_xticklabels()], above.get_xticks(), strict=True))
    assert ticks["1"] == pytest.approx(1e9) and ticks["1/100"] == pytest.approx(1e7)


def test_where_labels_collide_every_setting_has_its_own_mark() -> None:
    heap = [Point(f"setting {i}", "one group", 1e6, 0.5, "p") for i in range(40)]
    assert figure(heap) is None
    drawn = figure(heap[:12], labelled=False)
    handles = drawn.legends[0].legend_handles
    assert [text.get_text() for text in drawn.legends[0].texts] == [f"setting {i}" for i in range(12)]
    assert len({handle.get_marker() for handle in handles}) == 12
    assert len({handle.get_color() for handle in handles}) == 1
    assert size(frontier.draw(heap, "t", "s"))


def test_labels_keep_clear_of_lines_where_there_is_room() -> None:
    drawn = Figure(figsize=(5, 5))
    canvas = FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    canvas.draw()
    renderer = canvas.get_renderer()
    assert place(axes, [((0.5, 0.5), "label")], [((0.0, 0.5), (1.0, 0.5))], 6, renderer)
    (text,) = axes.texts
    box = text.get_window_extent(renderer)
    across = axes.transData.transform((0.5, 0.5))[1]
    assert box.y0 > across or box.y1 < across
