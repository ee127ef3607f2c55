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

from edgewise.cli.run import given_settings, note_in_one_line, settings
from edgewise.errors import EdgewiseError, EdgewiseWarning

if TYPE_CHECKING:
    from edgewise.engines.fleet.home import Home

HOME = click.argument("home", type=click.Path(path_type=Path))
PORT = 7443


@click.group()
def coordinator() -> None:
    """Run rounds with real devices."""


@coordinator.command()
@HOME
@click.option(
    "--address", "addresses", multiple=True, metavar="HOST", help="by which devices reach this machine"
)
@click.option(
    "--port", type=click.IntRange(1, 65534), default=PORT, help=f"of the fleet; joining: the next  [{PORT}]"
)
def init(home: Path, addresses: tuple[str, ...], port: int) -> None:
    """Found a fleet: make HOME, with an authority whose certificates its devices will have."""
    from edgewise.engines.fleet.home import Contact
    from edgewise.engines.fleet.identity import Authority
    from edgewise.engines.fleet.token import check_address

    contact = Contact(addresses or (socket.getfqdn(),), port)
    for address in (*contact.fleet, contact.join):
        check_address(address)
    Authority.create(home / "ca")
    contact.save(home)
    click.echo(f"{home}: a new fleet, reached at {', '.join(contact.fleet)}; joining at port {port + 1}")


@coordinator.command()
@HOME
@click.option("--count", type=int, default=1, help="tokens, a line each  [1]")
@click.option(
    "--device", type=int, metavar="N", help="the device's number, to let it join anew  [the next free]"
)
@click.option("--hours", type=float, default=24.0, help="until the token expires  [24]")
def invite(home: Path, count: int, device: int | None, hours: float) -> None:
    """Print a token with which one device can join, once."""
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
@click.argument("device", type=int)
def revoke(home: Path, device: int) -> None:
    """Take a device out for good, at once."""
    _ask(home, {"what": "revoke", "device": device})
    click.echo(f"device {device} is revoked")


@coordinator.command()
@HOME
@click.argument("device", type=int)
def clear(home: Path, device: int) -> None:
    """Ask a device again that was suspended because its updates were refused."""
    _ask(home, {"what": "clear", "device": device})
    click.echo(f"device {device} is asked again")


@coordinator.command()
@HOME
def stop(home: Path) -> None:
    """Stop the coordinator that runs on HOME; `run` continues."""
    _ask(home, {"what": "stop"})
    click.echo("stopping")


@coordinator.command()
@HOME
@click.option("--json", "as_json", is_flag=True, help="for programs")
def status(home: Path, as_json: bool) -> None:
    """Who is there, and how far the run is."""
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


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--out", type=click.Path(path_type=Path), metavar="DIR", help="the run's folder  [HOME/run]"
            ),
            click.option("--shape", metavar="CxHxW", help="of an image, where the coordinator has no data"),
            click.option("--classes", type=click.IntRange(1, 1 << 20), help="and how many classes there are"),
            click.option(
                "--quorum", type=float, default=1.0, help="share of a cohort that a round needs  [1: all]"
            ),
            click.option("--spare", type=float, default=0.0, help="how many more are asked, as a share  [0]"),
            click.option(
                "--labels/--no-labels", default=False, help="ask devices for their label counts  [no]"
            ),
            click.option(
                "--listen", metavar="HOST:PORT", help="the fleet's port  [every address, as init said]"
            ),
            click.option("--metrics", metavar="HOST:PORT", help="answer Prometheus there"),
            click.option("--log", type=click.Path(path_type=Path), metavar="FILE", help="  [stderr]"),
            click.option("--beat", type=float, default=10.0, help="seconds between signs of life  [10]"),
            click.option(
                "--insecure-loopback", is_flag=True, help="NO TLS, NO IDENTITY: for tests, on 127.0.0.1 only"
            ),
            click.option("--checkpoint-seconds", type=click.FloatRange(0), default=15.0, help="  [15]"),
            click.option("--fault", hidden=True),
        )
    ):
        command = option(command)
    return command


@coordinator.command("run")
@HOME
@click.argument("config_file", required=False, metavar="[CONFIG.toml]", type=click.Path(path_type=Path))
@settings
@click.option("--set", "extras", multiple=True, metavar="PART.KEY=VALUE", help="what has no flag of its own")
@_run_options
def run_rounds(home: Path, config_file: Path | None, extras: tuple[str, ...], **flags: Any) -> None:
    """Run what the config says on the devices that joined; or continue, after any kind of end.

    Devices bring their data. `--data` is the coordinator's own, on whose test examples it evaluates; with
    `--shape` and `--classes` in its place, devices evaluate on what they hold out.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    try:
        _run(home, config_file, extras, flags)
    except _Leaving:
        click.echo("edgewise: stopped; nothing is lost, run again to continue", err=True)
        sys.exit(0)


def _run(home: Path, config_file: Path | None, extras: tuple[str, ...], flags: dict[str, Any]) -> None:
    from edgewise import records, rounds
    from edgewise.engines.fleet.descriptors import allow_connections
    from edgewise.engines.fleet.home import Home
    from edgewise.engines.fleet.logs import log_to

    warnings.showwarning = note_in_one_line
    warnings.simplefilter("always", EdgewiseWarning)
    own = {name: flags.pop(name) for name in OWN}
    place = Home(home)
    place.check()
    allow_connections()
    folder = own["out"] or place.run
    log_to(own["log"])
    again = records.holds_run(folder)
    config = given_settings(config_file, {**flags, "engine": "fleet"}, extras, folder if again else None)
    prepare, reach = _halves(place, folder, own)
    with closing(rounds.drive(config, folder, prepare, reach, again, own["checkpoint_seconds"])) as play:
        for row in play:
            if row.accuracy is not None:
                done = f"round {row.round}  step {row.step}  loss {row.train_loss:.3f}"
                click.echo(f"{done}  accuracy {row.accuracy:.1%}", err=True)
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


def _halves(home: Home, folder: Path, own: dict[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How the run is prepared, and how its devices are reached."""
    from edgewise import data
    from edgewise.deploy import assemble_coordinator
    from edgewise.engines.fleet.coordinate import Coordinator
    from edgewise.engines.fleet.faults import COORDINATOR, Fault
    from edgewise.engines.fleet.home import Contact
    from edgewise.engines.fleet.host import Ports
    from edgewise.engines.fleet.identity import Authority
    from edgewise.engines.fleet.policy import Policy

    policy = Policy(own["quorum"], own["spare"], own["beat"], own["labels"])
    contact, fault = Contact.load(home.folder), Fault(own["fault"], COORDINATOR)
    ports = Ports.of(contact, own["listen"], own["insecure_loopback"])
    if ports.insecure:
        click.secho(
            "edgewise: INSECURE: no TLS, no identity; whoever reaches the port is a device",
            err=True,
            bold=True,
        )

    def prepare(config: Any) -> Any:
        if own["shape"] is None:
            folder = Path(config.data_dir) if config.data_dir else None
            return assemble_coordinator(config, data.load(config.data, folder))
        if own["classes"] is None:
            raise EdgewiseError("--shape: needs --classes beside it")
        return assemble_coordinator(config, (_shape(own["shape"]), own["classes"]))

    def reach(parts: Any, note: Any) -> Any:
        coordinator = Coordinator(home, Authority.load(home.ca), ports, own["metrics"], fault)
        return coordinator.fleet(parts.fleet_run(folder), policy, note)

    return prepare, reach


def _shape(text: str) -> tuple[int, int, int]:
    words = text.split("x")
    if len(words) != 3 or not all(word.isdigit() and 0 < int(word) <= 1 << 14 for word in words):
        raise EdgewiseError(f"--shape: {text!r} is not CxHxW, such as 3x32x32")
    channels, height, width = map(int, words)
    return channels, height, width
