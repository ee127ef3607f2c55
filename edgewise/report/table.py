"""Tables of runs: how well they did, what they sent, and what it took to come to a common accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.report.compare import differences
from edgewise.report.runs import Point, Run
from edgewise.report.words import duration, size

NONE = "-"  # nothing to tell


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; the columns after the first `left` are numbers and stand to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def markdown(self) -> str:
        rule = ["---"] * self.left + ["--:"] * (len(self.columns) - self.left)
        lines = [self.columns, tuple(rule), *self.rows]
        return "\n".join("| " + " | ".join(_escaped(word) for word in line) + " |" for line in lines)

    def rich(self) -> Any:
        """The table for a terminal."""
        from rich import box
        from rich.table import Table as Rich
        from rich.text import Text  # a name may hold square brackets

        table = Rich(title=Text(self.title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="left" if index < self.left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(word) for word in row))
        return table


def tables(runs: Sequence[Run], target: float | None, network: str | None) -> list[Table]:
    """The tables of a report; `network` is the described network's name, `target` an accuracy to reach."""
    found = [_accuracy(runs), _traffic(runs, network)]
    return found if target is None else [*found, _reaching(runs, target, network)]


def shared_accuracy(runs: Sequence[Run]) -> float | None:
    """What all runs that were evaluated came up to: the lowest of their bests, rounded down to 0.1 %."""
    best = min((run.best for run in runs if run.best is not None), default=None)
    return None if best is None else math.floor(best * 1000) / 1000


def _accuracy(runs: Sequence[Run]) -> Table:
    words = differences([run.config for run in runs])
    told = any(words)
    rows = []
    for run, settings in zip(runs, words, strict=True):
        tail = [point.reached for point in run.points[-10:]]
        numbers = (
            _share(tail[-1] if tail else None),
            _share(run.best),
            _share(sum(tail) / len(tail) if tail else None),
            _of(run.end, lambda end: f"{end.step:,}"),
            _rounds(run),
        )
        rows.append((run.name, *([settings] if told else []), *numbers))
    columns = ("run", *(["settings"] if told else []), "accuracy", "best", "last 10", "steps", "rounds")
    return Table("Accuracy on test data", columns, tuple(rows), left=1 + told)


def _traffic(runs: Sequence[Run], network: str | None) -> Table:
    columns = ["run", "up", "down", "up a device", "down a device"]
    rows = []
    for run in runs:
        sizes = (
            _of(run.end, lambda end: size(end.bytes_up)),
            _of(run.end, lambda end: size(end.bytes_down)),
            *_each(run.end, run),
        )
        rows.append((run.name, *sizes, *_time(run.end, network)))
    if network:
        columns.append(f"time on {network}")
    return Table("Bytes on the wire", tuple(columns), tuple(rows))


def _reaching(runs: Sequence[Run], target: float, network: str | None) -> Table:
    columns = ["run", "steps", "rounds", "up a device", "down a device"]
    rows = []
    for run in runs:
        point = run.reach(target)
        counts = (_of(point, lambda p: f"{p.step:,}"), _of(point, lambda p: f"{p.round:,}"))
        rows.append((run.name, *counts, *_each(point, run), *_time(point, network)))
    if network:
        columns.append(f"time on {network}")
    return Table(f"To reach {target:.1%} for the first time", tuple(columns), tuple(rows))


def _each(point: Point | None, run: Run) -> tuple[str, str]:
    """What the average device had sent and received."""
    devices = run.config.devices
    return (
        _of(point, lambda p: size(p.bytes_up / devices)),
        _of(point, lambda p: size(p.bytes_down / devices)),
    )


def _time(point: Point | None, network: str | None) -> tuple[str, ...]:
    return (_of(point, lambda p: duration(p.network_seconds or 0.0)),) if network else ()


def _rounds(run: Run) -> str:
    done = run.end.round if run.end else 0
    return f"{done:,}" if run.total in (None, done) else f"{done:,} of {run.total:,}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _of(point: Point | None, words: Callable[[Point], str]) -> str:
    return NONE if point is None else words(point)


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("|", "\\|")
