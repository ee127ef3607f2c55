"""`edgewise rank`: one of the processes that a run with `--processes` starts. Nobody types it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgewise.errors import EdgewiseError, EdgewiseWarning

if TYPE_CHECKING:
    from edgewise.config import Config
    from edgewise.data import Dataset

GONE = 1  # the exit status where there is no one left to tell why


@click.command(hidden=True)
def rank() -> None:
    """Be a rank of the run that standard input names, for as long as that is open."""
    from edgewise.assemble import assemble  # here, because they import PyTorch
    from edgewise.config import Config
    from edgewise.engines.torchrun.crew import join
    from edgewise.engines.torchrun.follow import follow
    from edgewise.engines.torchrun.group import Lost

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore", EdgewiseWarning)  # rank 0 says it
    line = sys.stdin.readline()
    if not line:
        return  # not needed
    threading.Thread(target=_end_with_input, daemon=True).start()
    words = json.loads(line)
    loaded = _loading(Config.of(words["settings"]))
    try:
        with closing(join(words["rank"], words["size"], words["port"])) as crew:
            assert crew.group is not None
            follow(crew.group, lambda config: assemble(config, loaded.get((config.data, config.data_dir))))
    except Lost:
        os._exit(GONE)


def _loading(config: Config) -> dict[tuple[str, str | None], Dataset]:
    """The data of a run, while rank 0 gets ready itself."""
    from edgewise import data

    with suppress(EdgewiseError):  # it is said when the run begins
        folder = Path(config.data_dir) if config.data_dir else None
        return {(config.data, config.data_dir): data.load(config.data, folder)}
    return {}


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(GONE)
