"""`edgewise ongoing` and `edgewise releases`: training that goes on as data arrives, and its releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewise.cli.run import given_settings, say_warnings, settings
from edgewise.cli.stopping import stopped_with

if TYPE_CHECKING:
    from edgewise.releases import Event


@click.command()
@click.argument("config_file", required=False, metavar="[CONFIG.toml]", type=click.Path(path_type=Path))
@settings
@click.option("--set", "extras", multiple=True, metavar="PART.KEY=VALUE", help="what has no flag of its own")
@click.option("--phases", type=int, default=5, metavar="N", help="phases in which classes appear  [5]")
@click.option(
    "--tolerance", type=click.FloatRange(0, 1), default=0.0, help="accuracy a release may lose  [0]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="the releases' folder"
)
def ongoing(
    config_file: Path | None,
    extras: tuple[str, ...],
    phases: int,
    tolerance: float,
    out: Path,
    **flags: Any,
) -> None:
    """Simulate training that goes on: classes appear over time, and what is no worse is released.

    Takes the flags of `edgewise run`, which give one phase's run. The same command goes on where it was
    stopped.
    """
    from edgewise import ongoing as play  # here, because it imports PyTorch

    say_warnings()
    config = given_settings(config_file, flags, extras)
    with stopped_with("the same command goes on"):
        for phase in play.ongoing(config, out, phases=phases, tolerance=tolerance):
            told = f"phase {phase.number}: {phase.classes} classes, {phase.examples} examples"
            click.echo(f"{told}: {_line(phase.event)}")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--roll-back", is_flag=True, help="make the release before the current one current")
@click.option("--to", type=int, metavar="N", help="roll back to this release")
def releases(folder: Path, roll_back: bool, to: int | None) -> None:
    """Show the releases in DIR, what was refused and why; or roll back."""
    from edgewise.errors import EdgewiseError
    from edgewise.releases import Releases

    found = Releases.read(folder)
    if not found.events:
        raise EdgewiseError(f"{folder}: holds no releases")
    if roll_back or to is not None:
        found = found.roll_back(to)
    for event in found.events:
        click.echo(_line(event))
    click.echo(f"current: {found.weights() if found.current else 'none'}")


def _line(event: Event) -> str:
    words = f"{event.kind} {event.release}" if event.kind != "refused" else "refused"
    if event.candidate is None:
        return f"{words}, {event.reason}"
    new, old = event.candidate, event.before
    was = f" (before: {old.accuracy:.1%}, {old.worst:.1%})" if old else ""
    return f"{words}: {event.reason}; held out {new.accuracy:.1%}, worst device {new.worst:.1%}{was}"
