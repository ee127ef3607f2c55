"""What `edgewise run` does where there are several processes: those that torchrun starts, or its own."""

from __future__ import annotations

import signal
import tomllib
import warnings
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import hire
from edgewise.errors import EdgewiseError, EdgewiseWarning
from edgewise.hire import Hired
from edgewise.settings import NAMES

if TYPE_CHECKING:
    from edgewise.config import Config
    from edgewise.rounds import Round

STORED, SUMMARY = "config.toml", "summary.json"  # as in records.py, which imports PyTorch


def beyond() -> bool:
    """Whether torchrun started this process as another rank than 0."""
    place = hire.launched()
    return place is not None and place[0] > 0


def follow() -> None:
    """Be that rank: what is to be done is rank 0's to say, whatever the command is."""
    from edgewise.assemble import assemble  # here, because they import PyTorch
    from edgewise.engines.torchrun.crew import Crew
    from edgewise.engines.torchrun.follow import follow

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 stops after its round
    warnings.simplefilter("ignore", EdgewiseWarning)  # and says what there is to say
    with closing(Crew.launched()) as crew:
        assert crew.group is not None
        follow(crew.group, assemble)


def check_alone() -> None:
    """EdgewiseError where torchrun started several processes and the run is for one."""
    place = hire.launched()
    if place is not None and place[1] > 1:
        raise EdgewiseError(f"engine: torchrun started {place[1]} processes; give --engine torchrun")


def play(
    config: Config, folder: Path, resume: bool, checkpoint_seconds: float, hired: Hired | None
) -> Generator[Round]:
    """The rounds, on rank 0."""
    from edgewise import rounds
    from edgewise.assemble import assemble
    from edgewise.engines.torchrun.crew import Crew

    crew = Crew.of(config, hired)
    return rounds.over_ranks(crew, config, folder, assemble, resume, checkpoint_seconds)


def hired_early(flags: dict[str, Any], config_file: Path | None, resumed: Path | None) -> Hired | None:
    """The processes that the run will need, before PyTorch is imported, as far as can be seen at a glance.

    None where it will need none, or that is not plain. `resumed`: the folder of the run that goes on.
    """
    if hire.launched() is not None or (resumed and (resumed / SUMMARY).exists()):
        return None
    paths = [config_file, resumed and resumed / STORED]
    given: dict[str, Any] = {}
    for path in paths:
        with suppress(OSError, ValueError, RecursionError):
            given |= tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    # A run that goes on has as many as before, unless it is given another number.
    known = {name: value for name, value in flags.items() if value not in (None, "auto")}
    given = {**flags, **given, **known}
    processes = given.get("processes") or ("auto" if given.get("engine") == "torchrun" else None)
    if processes is None:
        return None
    with suppress(
        EdgewiseError, TypeError, ValueError, AttributeError
    ):  # said when it is looked at with care
        devices = int(given.get("devices") or NAMES["devices"].default)
        ranks = hire.count(processes, devices)
        return Hired(ranks) if ranks > 1 else None
    return None
