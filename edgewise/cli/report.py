"""`edgewise report`: curves and tables from runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.network import Network
    from edgewise.report.page import Report

NETWORKS = "ethernet, wifi, lte, 3g, satellite, nbiot, or link:UP:DOWN[:LATENCY[:LOSS]] (Mbit/s, s, share)"
OUT = Path("out/report")
WIDE = 1000  # letters: wider than any table


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--against", type=click.Choice(["steps", "bytes", "seconds"]), help="one panel only  [all]")
@click.option(
    "--target", type=click.FloatRange(0, 1), metavar="X", help="accuracy to reach  [what all reached]"
)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, metavar="DIR", help=f"[{OUT}]")
@click.option("--network", metavar="NAME", help=f"the devices' links: {NETWORKS}")
@click.option("--spread", type=float, metavar="S", help="sigma of the log of a device's bandwidths  [0]")
@click.option("--step-seconds", "step", type=float, metavar="T", help="a device's time for a step  [0]")
@click.option("--step-spread", type=float, metavar="S", help="sigma of the log of that time  [0]")
@click.option("--server", type=float, metavar="MBIT", help="Mbit/s of the coordinator, shared  [no limit]")
@click.option("--network-seed", "seed", type=int, metavar="N", help="which devices are the slow ones  [0]")
def report(
    folders: tuple[Path, ...],
    against: str | None,
    target: float | None,
    out: Path,
    network: str | None,
    **fleet: Any,
) -> None:
    """Compare runs, finished or running: curves and tables.

    DIR is a run's folder, or one that holds runs. With --network the time that the rounds would take on a
    fleet with such links is worked out from the bytes; the slowest device of a round sets its pace.
    """
    from edgewise.report import page  # here, because they import PyTorch
    from edgewise.report.runs import read

    described = _network(network, {name: value for name, value in fleet.items() if value is not None})
    if against == "seconds" and described is None:
        raise EdgewiseError("--against seconds: on which network? give one with --network")
    told = page.Report(
        read(folders, described),
        described,
        network or "",
        target,
        [against] if against else [],
    )
    _show(told)
    command = shlex.join(["edgewise", *(click.format_filename(word) for word in sys.argv[1:])])
    written = page.write(told, out, command)
    click.echo("wrote " + ", ".join(click.format_filename(path) for path in written))


def _network(name: str | None, fleet: dict[str, Any]) -> Network | None:
    from edgewise import network

    if name is not None:
        return network.Network(network.parse(name, "--network"), **fleet)
    if fleet:
        flag = {"step": "--step-seconds", "seed": "--network-seed"}.get(option := min(fleet))
        raise EdgewiseError(
            f"{flag or '--' + option.replace('_', '-')}: of which network? give one with --network"
        )
    return None


def _show(told: Report) -> None:
    """The tables: on a terminal no wider than it, elsewhere as wide as they are."""
    from rich.console import Console

    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=WIDE)
    with console.capture() as shown:
        for table in told.tables:
            console.print(table.rich())
    click.echo("\n".join([*told.notes, "", *(line.rstrip() for line in shown.get().splitlines())]))
