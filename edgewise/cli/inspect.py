"""`edgewise inspect`: what skew does to this model on this split, before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgewise.cli.run import given_settings, settings
from edgewise.cli.stopping import stopped_with
from edgewise.files import check_writable

PAGE = Path("out/inspect.html")


@click.command()
@click.argument("config_file", required=False, metavar="[CONFIG.toml]", type=click.Path(path_type=Path))
@settings
@click.option("--set", "extras", multiple=True, metavar="PART.KEY=VALUE", help="what has no flag of its own")
@click.option(
    "--out", type=click.Path(path_type=Path), default=PAGE, metavar="FILE", help=f"the page  [{PAGE}]"
)
def inspect(config_file: Path | None, extras: tuple[str, ...], out: Path, **flags: Any) -> None:
    """Measure what skew does to this model on this split, before training, and say what to change.

    Takes the flags of `edgewise run`. The exit status is 0 whatever is found.
    """
    from edgewise import inspection  # here, because it imports PyTorch

    config = given_settings(config_file, flags, extras)
    check_writable(out)
    with stopped_with("nothing was written"):
        found = inspection.inspect(config, say=lambda words: click.echo(f"measuring {words}", err=True))
    click.echo(found.text)
    click.echo(f"wrote {click.format_filename(found.write(out))}")
