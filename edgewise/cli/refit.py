"""`edgewise refit`: what of a trained model can be computed anew from sums over its devices' data."""

from __future__ import annotations

from pathlib import Path

import click

from edgewise.cli.stopping import stopped_with
from edgewise.errors import EdgewiseError


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--ridge", type=float, metavar="X", help="how much weights are shrunk  [0.001]")
@click.option("--statistics", is_flag=True, help="batch norm's statistics, not the last layer")
@click.option("--examples", type=int, metavar="N", help="of each device, for its statistics  [100]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="[RUN/refit or RUN/restated]")
def refit(run: Path, ridge: float | None, statistics: bool, examples: int | None, out: Path | None) -> None:
    """Compute the last layer of a finished run's model anew, from sums over each device's features; with

    --statistics those of its batch norms, from moments of what reaches them.

    Either adds up to what all data in one place would give, however it is dealt out.
    """
    if statistics and ridge is not None:
        raise EdgewiseError("refit: --ridge is for the last layer, and --statistics leaves it alone")
    if examples is not None and not statistics:
        raise EdgewiseError("refit: --examples is for --statistics; a last layer is fitted to all examples")
    from edgewise import refit as refitting  # here, because it imports PyTorch
    from edgewise import restate as restating

    with stopped_with("nothing was written"):
        if statistics:
            given = restating.EXAMPLES if examples is None else examples
            click.echo(restating.restate(run, given, out=out).text)
        else:
            click.echo(refitting.refit(run, refitting.RIDGE if ridge is None else ridge, out=out).text)
