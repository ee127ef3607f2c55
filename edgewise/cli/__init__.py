"""The command `edgewise`: parse, call the library, print. PyTorch is imported only once a command runs."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from edgewise.cli.reproduce import reproduce
from edgewise.cli.run import run
from edgewise.errors import EdgewiseError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="edgewise")
def edgewise() -> None:
    """Train one model on many devices whose data never leaves them and never looks alike."""


edgewise.add_command(run)
edgewise.add_command(reproduce)


def main() -> None:
    """Run the command; a user's mistake is one line on stderr and exit status 2."""
    try:
        status = edgewise.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _stop(error.format_message())
    except EdgewiseError as error:
        _stop(str(error))
    except OSError as error:
        _stop(f"{error.filename or 'output'}: {error.strerror or error}")
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgewise: interrupted; --resume continues from what was committed", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _stop(message: str) -> None:
    with suppress(OSError):  # stderr may be what is full
        click.echo(f"edgewise: {' '.join(message.split())}", err=True)
    sys.exit(2)
