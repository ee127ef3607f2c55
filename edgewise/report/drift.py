"""Drift and forgetting of runs, as a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgewise.report.curves import Curve, Panel
from edgewise.report.runs import Run
from edgewise.report.table import NONE, Table
from edgewise.report.watched import THREES, Three


def table(runs: Sequence[Run]) -> Table | None:
    """The means of each run's last ten evaluations; None where no run told of anything."""
    rows = []
    for run in runs:
        last = [point.watched for point in run.points[-10:]]
        numbers = [_mean([getattr(one, n) for one in last]) for n in ("drift_cosine", "drift_diversity")]
        lost = _mean([one.forgetting for one in last])
        rows.append(
            (
                run.name,
                *(NONE if value is None else f"{value:.2f}" for value in numbers),
                NONE if lost is None else f"{100 * lost:.1f}",
                *(_three([getattr(one, name) for one in last]) for name in THREES[:3]),
            )
        )
    columns = ("run", "cosine", "diversity", "forgetting", "own classes", "other classes", "counterforce")
    told = any(word != NONE for row in rows for word in row[1:])
    title = "Drift and forgetting (points; % at a round's start, after local training, averaged)"
    return Table(title, columns, tuple(rows)) if told else None


def panels(runs: Sequence[Run], names: Sequence[str]) -> list[Panel]:
    """Over steps: how far updates agree, and what local training and averaging do; empty for nothing."""
    cosines = _panel(runs, names, _cosine, "cosine of two devices' updates", percent=False)
    absent = _panel(runs, names, lambda run: _sawtooth(run, "absent"), "recall of classes a device lacks")
    force = _panel(runs, names, lambda run: _sawtooth(run, "counterforce"), "counterforce")
    return [panel for panel in (cosines, absent, force) if any(curve.steps for curve in panel.curves)]


Line = tuple[list[float], list[float]]


def _panel(
    runs: Sequence[Run],
    names: Sequence[str],
    line: Callable[[Run], Line],
    measure: str,
    percent: bool = True,
) -> Panel:
    lines = [line(run) for run in runs]
    curves = [Curve(name if told[0] else "", *told) for name, told in zip(names, lines, strict=True)]
    low = min((value for curve in curves for value in curve.accuracies), default=0.0)
    return Panel("steps of a device", curves, measure=measure, percent=percent, low=min(0.0, low))


def _cosine(run: Run) -> Line:
    told = [(p.step, p.watched.drift_cosine) for p in run.points if p.watched.drift_cosine is not None]
    return [float(step) for step, _ in told], [value for _, value in told]


def _sawtooth(run: Run, name: str) -> Line:
    """Every evaluated round as three points: where it begins, its end, and averaged."""
    steps: list[float] = []
    values: list[float] = []
    for point in run.points:
        three = getattr(point.watched, name)
        if three is not None:
            begun = max(0, point.step - run.config.algorithm.sync_every)
            steps += [begun, point.step, point.step]
            values += three
    return steps, values


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _three(values: Sequence[Three | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    means = [sum(column) / len(known) for column in zip(*known, strict=True)]
    return ", ".join(f"{100 * mean:.0f}" for mean in means)
