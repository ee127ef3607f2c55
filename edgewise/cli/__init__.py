"""The command `edgewise`: parse, call the library, print. PyTorch is imported only once a command runs."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

import click

from edgewise.cli.agent import agent
from edgewise.cli.coordinator import coordinator
from edgewise.cli.export import export
from edgewise.cli.inspect import inspect
from edgewise.cli.ongoing import ongoing, releases
from edgewise.cli.rank import rank
from edgewise.cli.refit import refit
from edgewise.cli.report import report
from edgewise.cli.reproduce import reproduce
from edgewise.cli.run import run
from edgewise.errors import EdgewiseError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="edgewise")
def edgewise() -> None:
    """Train one model on many devices whose data never leaves them and never looks alike."""


edgewise.add_command(run)
edgewise.add_command(inspect)
edgewise.add_command(rank)
edgewise.add_command(refit)
edgewise.add_command(export)
edgewise.add_command(ongoing)
edgewise.add_command(releases)
edgewise.add_command(reproduce)
edgewise.add_command(report)
edgewise.add_command(coordinator)
edgewise.add_command(agent)


def main() -> None:
    """Run the command; a user's mistake is one line on stderr and exit status 2."""
    # gRPC has its own words for what we say in ours; who looks for a fault in it can ask for them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
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
        _stop("interrupted; --resume continues from what was committed", status=130)
    except (MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        _stop(f"not enough memory ({error}); a smaller batch or width needs less")
    sys.exit(status if isinstance(status, int) else 0)


def _is_shortage(error: Exception) -> bool:
    """Whether memory ran out: PyTorch has no type of its own for that on the CPU."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in words or "out of memory" in words


def _stop(message: str, status: int = 2) -> NoReturn:
    with suppress(OSError):  # stderr may be what is full
        click.echo(f"edgewise: {' '.join(message.split())}", err=True)
    sys.exit(status)
