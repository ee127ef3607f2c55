"""`edgewise run`: one run, from flags and an optional config file."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewise.cli import ranks
from edgewise.cli.progress import show
from edgewise.cli.tensorboard import logged
from edgewise.errors import EdgewiseError, EdgewiseWarning
from edgewise.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from edgewise.config import Config


def _option(setting: Setting) -> Callable[[Any], Any]:
    default = "" if setting.default is None else f"  [{str(setting.default).lower()}]"
    meaning = setting.meaning + default
    if setting.kind is bool:
        flags = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return click.option(flags, setting.name, default=None, help=meaning)
    metavar = {int: "N", float: "X", str: "NAME"}[setting.kind]
    return click.option(setting.flag, setting.name, type=setting.kind, metavar=metavar, help=meaning)


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for every setting of a run."""
    for setting in reversed(SETTINGS):
        command = _option(setting)(command)
    return command


@click.command()
@click.argument("config_file", required=False, metavar="[CONFIG.toml]", type=click.Path(path_type=Path))
@settings
@click.option("--set", "extras", multiple=True, metavar="PART.KEY=VALUE", help="what has no flag of its own")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="the run's folder  [runs/NNN]")
@click.option("--resume", is_flag=True, help="continue the run in --out")
@click.option("--tensorboard", is_flag=True, help="write the rounds for TensorBoard too, in the run's folder")
@click.option(
    "--checkpoint-seconds", type=click.FloatRange(0), default=15.0, help="time between checkpoints  [15]"
)
def run(
    config_file: Path | None,
    extras: tuple[str, ...],
    out: Path | None,
    resume: bool,
    tensorboard: bool,
    checkpoint_seconds: float,
    **flags: Any,
) -> None:
    """Train one model on simulated devices."""
    if ranks.beyond():
        ranks.follow()
        return
    if resume and out is None:
        raise EdgewiseError("--resume: which run? give its folder with --out DIR")
    folder = out or _free(Path("runs"))
    hired = ranks.hired_early(flags, config_file, folder if resume else None)
    from edgewise import records, rounds  # here, because they import PyTorch

    say_warnings()
    again = resume and records.holds_run(folder)
    config = given_settings(config_file, flags, extras, folder if again else None)
    stopping = _Stopping()
    if config.engine == "torchrun":
        play = ranks.play(config, folder, resume, checkpoint_seconds, hired)
    else:
        ranks.check_alone()
        play = rounds.run(config, folder, resume=resume, checkpoint_seconds=checkpoint_seconds)
    with closing(play):
        finished = show(logged(play, folder) if tensorboard else play, folder, stopping)
    if not finished:
        raise click.Abort


def given_settings(
    config_file: Path | None, flags: dict[str, Any], extras: tuple[str, ...], again: Path | None = None
) -> Config:
    """The config of a file and of flags, which win; `again`: for the run in this folder, which it fits."""
    from edgewise import records
    from edgewise.config import Config, read_toml
    from edgewise.reconcile import overlay

    given = read_toml(config_file) if config_file else {}
    given |= {name: value for name, value in flags.items() if value is not None}
    if extras:
        given["set"] = {**given.get("set", {}), **dict(_pair(extra) for extra in extras)}
    return overlay(again / records.CONFIG, given) if again else Config.of(given)


class _Stopping:
    """Ctrl-C asks for a stop after the round in flight; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not echo: what was interrupted may itself be writing to stderr, and its buffer takes one at a time.
        os.write(2, b"edgewise: stopping after this round (Ctrl-C again: at once)\n")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise EdgewiseError(f"--set: {text!r} is not of the form part.key=value")
    return name, value


def _free(parent: Path) -> Path:
    """The first of parent/001, parent/002, ... that is not there yet."""
    number = 1
    while (folder := parent / f"{number:03}").exists():
        number += 1
    return folder


def say_warnings() -> None:
    """Show the user's warnings as notes of one line, whatever the environment makes of warnings."""
    warnings.showwarning = note_in_one_line
    warnings.simplefilter("always", EdgewiseWarning)


def note_in_one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"edgewise: note: {' '.join(str(message).split())}", err=True)
