"""`edgewise agent`: the program on a device. Join a fleet once, then run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewise.cli.run import note_in_one_line
from edgewise.errors import EdgewiseError, EdgewiseWarning

if TYPE_CHECKING:
    from edgewise.deploy import Share

HOME = click.argument("home", type=click.Path(path_type=Path))


@click.group(invoke_without_command=True)
@click.option(
    "--load",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="for load tests: N light agents in one process, which train nothing",
)
@click.option(
    "--tokens", type=click.Path(path_type=Path), metavar="FILE", help="for --load: one a line, to join with"
)
@click.option(
    "--data", "name", default="digits", metavar="NAME", help="for --load: of the images' shape  [digits]"
)
@click.option("--allow", multiple=True, metavar="NAME", help="for --load: a model that may be imported")
@click.option("--once", is_flag=True, help="for --load: end when the run does")
@click.pass_context
def agent(context: click.Context, /, load: int | None, tokens: Path | None, **own: Any) -> None:
    """Be a device of a fleet: train on data that stays here.

    HOME is the device's folder on this machine. First join, once, with a token from `edgewise coordinator
    invite`; then run. How-to: docs/fleet.md.
    """
    if load is None:
        if context.invoked_subcommand is None:
            click.echo(context.get_help())
        return
    if tokens is None:
        raise EdgewiseError("--load: needs --tokens FILE, with as many tokens (coordinator invite --count N)")
    from edgewise import data
    from edgewise.deploy import equip
    from edgewise.engines.fleet.load import run_load
    from edgewise.engines.fleet.logs import log_to

    log_to(None)
    dataset = data.load(own["name"])
    run_load(load, tokens, own["once"], lambda plan: equip(plan, dataset, 0, None, own["allow"], "cpu"))


@agent.command()
@HOME
@click.argument("token")
@click.option("--name", metavar="TEXT", help="what the coordinator's operator sees  [this host's name]")
def join(home: Path, token: str, name: str | None) -> None:
    """Join the fleet that a TOKEN is for; - reads it from standard input. The device's key stays in HOME.

    The coordinator must be running: joining asks it for a certificate.
    """
    from edgewise.engines.fleet.join import join_fleet
    from edgewise.engines.fleet.token import Token

    text = sys.stdin.readline().strip() if token == "-" else token
    device = join_fleet(home, Token.parse(text), name or socket.gethostname())
    click.echo(f"{home}: device {device} of the fleet; edgewise agent run {home} serves it")


@agent.command()
@HOME
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
def status(home: Path, as_json: bool) -> None:
    """Show which device this is, and how far it has come. Asks nobody."""
    from edgewise.engines.fleet.join import standing

    found = standing(home)
    click.echo(
        json.dumps(found, indent=2)
        if as_json
        else "\n".join(f"{name}: {value}" for name, value in found.items())
    )


@agent.command("run")
@HOME
@click.option(
    "--data", default="digits", metavar="NAME", help="digits, cifar10, or package.module:function  [digits]"
)
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="folder of the data's files")
@click.option(
    "--partition", metavar="NAME", help="for trials: hold only this device's part of --data, dealt so ..."
)
@click.option("--devices", type=click.IntRange(1), metavar="N", help="... to this many devices ...")
@click.option("--seed", type=int, metavar="N", default=0, help="... with this seed  [0]")
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="a model, as package.module:function, that the coordinator may ask for; may be given again",
)
@click.option(
    "--share-labels", is_flag=True, help="let the coordinator know how many examples of each class are here"
)
@click.option(
    "--accelerator",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="what this device trains on  [auto]",
)
@click.option("--coordinator", metavar="HOST:PORT", help="in place of the addresses that joining brought")
@click.option(
    "--log",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="log file, - for stderr  [stderr]",
)
@click.option("--once", is_flag=True, help="end when the run does, instead of waiting for the next")
@click.option(
    "--insecure-loopback", type=int, metavar="DEVICE", help="NO TLS, NO IDENTITY: for tests; be this device"
)
@click.option("--fault", hidden=True)
def run_agent(home: Path, **own: Any) -> None:
    """Serve the coordinator until stopped, whatever becomes of the network.

    Data stays here. What leaves: updates of the model, losses, numbers of examples, scores of evaluations;
    with --share-labels, how many examples of each class.
    """
    from edgewise import data, specs
    from edgewise.data.partition import PARTITIONS
    from edgewise.deploy import Share
    from edgewise.engines.fleet.join import link
    from edgewise.engines.fleet.logs import log_to

    warnings.showwarning = note_in_one_line
    warnings.simplefilter("always", EdgewiseWarning)
    if (own["partition"] is None) != (own["devices"] is None):
        raise EdgewiseError("--partition and --devices: deal data for a trial; give both, or neither")
    link(home, own["coordinator"], own["insecure_loopback"])  # before data is loaded, which may take long
    log_to(own["log"])
    share = None
    if own["partition"] is not None:
        share = Share(specs.parse(PARTITIONS, own["partition"], "partition"), own["devices"], own["seed"])
    dataset = data.load(own["data"], own["data_dir"])
    serve(home, dataset, share, own)


def serve(home: Path, dataset: Any, share: Share | None, own: dict[str, Any]) -> None:
    """Put an agent together and let it run until SIGTERM, Ctrl-C or the end of the run."""
    from edgewise.deploy import equip
    from edgewise.engines.fleet.agent import Agent
    from edgewise.engines.fleet.duty import Duty, Training
    from edgewise.engines.fleet.faults import AGENT, Fault
    from edgewise.engines.fleet.join import alone, link
    from edgewise.engines.fleet.keep import Keep

    fault = Fault(own["fault"], AGENT)
    with alone(home), ThreadPoolExecutor(1, "work") as executor:
        reached = link(home, own["coordinator"], own["insecure_loopback"])
        device = reached.device

        def prepare(plan: Any) -> Duty:
            outfit = equip(plan, dataset, device, share, own["allow"], own["accelerator"])
            return Training(outfit, own["share_labels"])

        def remember(run: str) -> Keep:
            return Keep(home / "memory" / run)

        asyncio.run(_until_told(Agent(reached, prepare, remember, executor, own["once"], fault)))


async def _until_told(agent: Any) -> None:
    """Run the agent; SIGTERM and Ctrl-C end it, and its memory is where it was committed last."""
    loop, work = asyncio.get_running_loop(), asyncio.ensure_future(agent.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        # What is being trained now is of no use to anyone; a thread that computes cannot be stopped.
        click.echo("edgewise: stopped", err=True)
        sys.stderr.flush()
        os._exit(0)
