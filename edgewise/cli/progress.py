"""What a person sees while a run goes on: a bar with round, examples a second, time left and accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from edgewise.rounds import Round


class Stopping(Protocol):
    asked: bool


def show(play: Iterable[Round], folder: Path, stopping: Stopping) -> bool:
    """Play the rounds and show them: a live bar on a terminal, a line per evaluation elsewhere.

    Whether the run came to its end, and was not stopped before.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from edgewise import records
    from edgewise.rounds import total_rounds

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        disable=not console.is_terminal,
    )
    total, words, task = None, "", None
    with bar:
        for row in play:
            if total is None:
                total = total_rounds(folder)
                task = bar.add_task("", total=total, completed=row.round - 1, words="")
                _holdings(console, folder)
            if row.accuracy is not None:
                words = f"accuracy {row.accuracy:.1%}"
                if not console.is_terminal:
                    click.echo(_line(row, total), err=True)
            assert task is not None
            speed = _speed(row)
            bar.update(
                task,
                completed=row.round,
                words=f"{speed:,.0f} examples/s  loss {row.train_loss:.3f}  {words}",
            )
            if stopping.asked and row.round < total:
                return False
    summary = records.summary(folder)
    assert summary is not None
    click.echo(_result(summary, folder))
    return True


def watch(play: Iterable[Round], total: Callable[[], int], there: Callable[[], str], quiet: bool) -> None:
    """Play the rounds of a fleet and show them, as `show` does; `quiet`: no bar, whatever stderr is.

    `total`: how many there will be, 0 while that is not known; `there`: who is there and who is waited for.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class There(ProgressColumn):
        """Drawn anew while a round waits, too."""

        max_refresh = 0.5

        def render(self, task: Any) -> Text:
            return Text(f"round {task.completed:.0f}/{total() or '?'}, {there()}")

    console = Console(stderr=True)
    live = console.is_terminal and not quiet
    bar = Progress(
        There(table_column=Column(no_wrap=True)),
        BarColumn(20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        disable=not live,
    )
    accuracy = ""
    with bar:
        task = bar.add_task("", total=None, words="")
        for row in play:
            if row.accuracy is not None:
                accuracy = f"accuracy {row.accuracy:.1%}"
                if not live:
                    done = f"round {row.round}/{total()}  step {row.step}"
                    click.echo(f"{done}  loss {row.train_loss:.3f}  {accuracy}", err=True)
            words = f"loss {row.train_loss:.3f}  {accuracy}"
            bar.update(task, completed=row.round, total=total(), words=words)


def _speed(row: Round) -> float:
    return row.examples_seen / row.round / max(row.seconds, 1e-9)


def _line(row: Round, total: int) -> str:
    return (
        f"round {row.round}/{total}  step {row.step}  loss {row.train_loss:.3f}  "
        f"accuracy {row.accuracy:.1%}  {_speed(row):,.0f} examples/s"
    )


def _holdings(console: Any, folder: Path) -> None:
    """The table of who holds what, from the folder's partition.csv."""
    import csv

    import torch

    from edgewise import records
    from edgewise.data.holdings import table

    with (folder / records.PARTITION).open(newline="") as file:
        head, *lines = csv.reader(file)
    console.print(table(torch.tensor([[int(n) for n in line[2:]] for line in lines]), head[2:]))


def _result(summary: dict[str, Any], folder: Path) -> str:
    shown = {name: summary[name] for name in ("accuracy", "best_accuracy", "rounds", "bytes_up", "seconds")}
    return f"{click.format_filename(folder)}: {json.dumps(shown)}"
