"""`edgewise coordinator`: found a fleet, invite devices, run rounds with them, see how they do."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewise.cli.progress import watch
from edgewise.cli.run import given_settings, note_in_one_line, settings
from edgewise.errors import EdgewiseError, EdgewiseWarning

if TYPE_CHECKING:
    from edgewise.config import Config
    from edgewise.engines.fleet.home import Home

HOME = click.argument("home", type=click.Path(path_type=Path))
DEVICE = click.argument("device", type=click.IntRange(0), metavar="N")
LOG = click.Path(path_type=Path, allow_dash=True)
STDERR = Path("-")
PORT = 7443


@click.group()
def coordinator() -> None:
    """Train with real devices: found a fleet, invite devices, run.

    HOME is the fleet's folder on this machine. In order: init, invite (a token for each device, which joins
    with it by `edgewise agent join`), run; status at any time. How-to: docs/fleet.md.
    """


@coordinator.command()
@HOME
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="HOST",
    help="name or IP address by which devices reach this machine; may be given again  [this host's name]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65534),
    default=PORT,
    help=f"TCP port for agents; joining takes the next one  [{PORT}]",
)
def init(home: Path, addresses: tuple[str, ...], port: int) -> None:
    """Found a fleet: make HOME, with the authority that signs its devices' certificates."""
    from edgewise.engines.fleet.home import Contact, Home

    contact = Contact.of(addresses or (socket.getfqdn(),), port)
    Home(home).found(contact)
    click.echo(
        f"{home}: a new fleet; devices reach it at {', '.join(contact.fleet)}, and to join at {contact.join}"
    )


@coordinator.command()
@HOME
@click.option("--count", type=int, metavar="N", default=1, help="how many tokens, a line each  [1]")
@click.option(
    "--device", type=int, metavar="N", help="for the device of this number, to join anew  [the next free one]"
)
@click.option("--hours", type=float, metavar="X", default=24.0, help="until the token expires  [24]")
def invite(home: Path, count: int, device: int | None, hours: float) -> None:
    """Print a token with which one device can join, once. It is a secret until then."""
    from edgewise.engines.fleet.certificates import certificate_der, read_certificate
    from edgewise.engines.fleet.home import Contact
    from edgewise.engines.fleet.identity import Authority
    from edgewise.engines.fleet.token import Token

    if device is not None and count != 1:
        raise EdgewiseError("--device: names one device, so --count is 1")
    answer = _ask(home, {"what": "invite", "count": count, "hours": hours, "device": device})
    contact = Contact.load(home)
    authority = read_certificate(Authority.load(home / "ca").ca)
    for secret in answer["secrets"]:
        token = Token(contact.fleet, contact.join, bytes.fromhex(secret), certificate_der(authority))
        click.echo(token.text())


@coordinator.command()
@HOME
@DEVICE
def revoke(home: Path, device: int) -> None:
    """Take device N out of the fleet for good, at once."""
    _ask(home, {"what": "revoke", "device": device})
    click.echo(f"device {device} is revoked")


@coordinator.command()
@HOME
@DEVICE
def clear(home: Path, device: int) -> None:
    """Ask device N again, which was suspended because its updates were refused."""
    _ask(home, {"what": "clear", "device": device})
    click.echo(f"device {device} is asked again")


@coordinator.command()
@HOME
def stop(home: Path) -> None:
    """Stop the coordinator that runs on HOME. Nothing is lost: `run` continues."""
    _ask(home, {"what": "stop"})
    click.echo("the coordinator stops; edgewise coordinator run continues")


@coordinator.command()
@HOME
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
def status(home: Path, as_json: bool) -> None:
    """Show who is there, how far the run is, and what happened last."""
    answer = _ask(home, {"what": "status"})
    click.echo(json.dumps(answer, indent=2)) if as_json else _show(answer)


def _ask(home: Path, request: dict[str, Any]) -> dict[str, Any]:
    from edgewise.engines.fleet.home import Home
    from edgewise.engines.fleet.operator import ask

    return ask(Home(home), request)


def _show(answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    if answer["running"]:
        click.echo(
            f"run {answer['run'][:8]}: round {answer['round']} of {answer['rounds']}, "
            f"{answer['connected']} devices are here"
            + (f"; waiting for {_few(answer['missing'])}" if answer["missing"] else "")
        )
    else:
        click.echo("not running")
    table = Table(box=None, padding=(0, 1))
    for column in ("device", "state", "examples", "refused", "joined", "name"):
        table.add_column(column, justify="left" if column in ("state", "name") else "right")
    for one in answer["devices"]:
        examples = "" if one["examples"] is None else str(one["examples"])
        joined = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["joined"]))
        table.add_row(str(one["id"]), one["state"], examples, str(one["flags"]), joined, one["name"])
    Console().print(table)
    for event in answer["events"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        where = "".join(f" {name} {event[name]}" for name in ("round", "device") if event[name] is not None)
        click.echo(f"{at}{where}: {event['kind']}: {event['words']}")


def _few(devices: list[int]) -> str:
    return f"devices {', '.join(map(str, devices[:10]))}{' ...' if len(devices) > 10 else ''}"


RUN_OPTIONS = (
    click.option(
        "--out", type=click.Path(path_type=Path), metavar="DIR", help="the run's folder  [HOME/run]"
    ),
    click.option("--shape", metavar="CxHxW", help="of an image, in place of --data: devices evaluate then"),
    click.option("--classes", type=click.IntRange(1, 1 << 20), metavar="N", help="how many, with --shape"),
    click.option(
        "--quorum",
        type=float,
        metavar="X",
        default=1.0,
        help="share of the devices asked that must answer; 1 waits for all, as long as it takes  [1]",
    ),
    click.option(
        "--spare",
        type=float,
        metavar="X",
        default=0.0,
        help="ask this share more devices than needed; the first to answer count  [0]",
    ),
    click.option(
        "--labels/--no-labels",
        default=False,
        help="ask devices how many examples of each class they hold; their operators decide  [no]",
    ),
    click.option("--listen", metavar="HOST:PORT", help="where agents connect  [0.0.0.0, the port of init]"),
    click.option("--metrics", metavar="HOST:PORT", help="answer Prometheus there, over HTTP"),
    click.option("--log", type=LOG, metavar="FILE", help="log file, - for stderr  [HOME/coordinator.log]"),
    click.option("--beat", type=float, metavar="X", default=10.0, help="seconds between signs of life  [10]"),
    click.option(
        "--insecure-loopback", is_flag=True, help="NO TLS, NO IDENTITY: for tests, on 127.0.0.1 only"
    ),
    click.option(
        "--checkpoint-seconds",
        type=click.FloatRange(0),
        metavar="X",
        default=15.0,
        help="time between checkpoints  [15]",
    ),
    click.option("--fault", hidden=True),
)


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command


@coordinator.command("run")
@HOME
@click.argument("config_file", required=False, metavar="[CONFIG.toml]", type=click.Path(path_type=Path))
@settings
@click.option("--set", "extras", multiple=True, metavar="PART.KEY=VALUE", help="what has no flag of its own")
@_run_options
def run_rounds(home: Path, config_file: Path | None, extras: tuple[str, ...], **flags: Any) -> None:
    """Train on the devices that joined; after any kind of end, the same command continues.

    Settings are those of `edgewise run`, by flags or from its config.toml. Devices bring their own data:
    --data is only what the coordinator evaluates on. Without any (--shape and --classes), devices evaluate
    on what they hold out. A HOME holds one run; for another one name another folder with --out.
    """
    try:  # from here on: a signal may come right after its handler
        signal.signal(signal.SIGINT, _leave)
        signal.signal(signal.SIGTERM, _leave)  # the last: who sees that it is caught may send either
        _run(home, config_file, extras, flags)
    except _Leaving:
        click.echo("edgewise: stopped; nothing is lost, run again to continue", err=True)
        sys.exit(0)


def _run(home: Path, config_file: Path | None, extras: tuple[str, ...], flags: dict[str, Any]) -> None:
    from edgewise import records
    from edgewise.engines.fleet.descriptors import allow_connections
    from edgewise.engines.fleet.home import Home
    from edgewise.engines.fleet.logs import log_to

    warnings.showwarning = note_in_one_line
    warnings.simplefilter("always", EdgewiseWarning)
    own = {name: flags.pop(name) for name in OWN}
    _check(own, flags)
    place = Home(home)
    place.check()
    allow_connections()
    folder = own["out"] or place.run
    own["log"] = own["log"] or place.log
    log_to(own["log"])
    again = folder if records.holds_run(folder) else None
    config = given_settings(config_file, {**flags, "engine": "fleet"}, extras, again)
    if again and records.summary(folder):
        click.echo(f"edgewise: the run in {folder} is finished; --out DIR starts another", err=True)
    _play(place, config, folder, own)
    summary = records.summary(folder) or {}
    shown = {name: summary[name] for name in ("accuracy", "rounds", "bytes_up", "seconds", "model_digest")}
    click.echo(f"{click.format_filename(folder)}: {json.dumps(shown)}")


OWN = (
    *("out", "shape", "classes", "quorum", "spare", "labels", "listen", "metrics", "log", "beat"),
    *("insecure_loopback", "checkpoint_seconds", "fault"),
)


class _Leaving(BaseException):
    """SIGTERM or Ctrl-C: the journal holds what was taken, and nothing else needs saving."""


def _leave(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise _Leaving


def _check(own: dict[str, Any], flags: dict[str, Any]) -> None:
    """EdgewiseError for what does not go together, before anything heavy is loaded."""
    from edgewise.cli.stage import read_shape

    if own["shape"] is not None:
        read_shape(own["shape"])
    if (own["shape"] is None) != (own["classes"] is None):
        raise EdgewiseError("--shape and --classes: give both (devices evaluate), or neither")
    if own["shape"] is not None and flags["data"] is not None:
        raise EdgewiseError("--shape: stands in place of --data; give one of them")


def _play(home: Home, config: Config, folder: Path, own: dict[str, Any]) -> None:
    """All rounds that are left, shown."""
    from edgewise import records, rounds
    from edgewise.cli.stage import Stage

    stage, again = Stage(home, folder, own), records.holds_run(folder)
    play = rounds.drive(config, folder, stage.prepare, stage.reach, again, own["checkpoint_seconds"])
    with closing(play):
        watch(play, stage.rounds, stage.there, own["log"] == STDERR)
