"""`edgewise refit`: the last layer of a trained model, fitted to all devices' data in closed form."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli.stopping import stopped_with


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--ridge", type=float, default=1e-3, metavar="X", help="how much weights are shrunk  [0.001]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="the folder  [RUN/refit]")
def refit(run: Path, ridge: float, out: Path | None) -> None:
    """Fit the last layer of a finished run's model anew, from sums over each device's features.

    They add up to the ridge regression on all data in one place, however the data is dealt out.
    """
    from edgewise import refit as refitting  # here, because it imports PyTorch

    with stopped_with("nothing was written"):
        found = refitting.refit(run, ridge, out=out)
    click.echo(found.text)
