"""docs/fleet.md says what is so: its commands run as they stand, its tables name what the code names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest

from edgewise.cli import edgewise
from edgewise.engines.fleet.metrics import Metrics

ROOT = Path(__file__).parent.parent
FLEET = ROOT / "edgewise" / "engines" / "fleet"
PAGE = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
UNITS = sorted((ROOT / "docs" / "systemd").glob("*.service"))
BLOCKS = re.findall(r"^```sh\n# (terminal \d)[^\n]*\n(.*?)^```", PAGE, re.M | re.S)
# The words of an event where it is logged, noted (logged and put into the journal), or only put there.
EVENT = re.compile(r'(?:log\.(?:info|warning|error)|\.note|journal\.event)\(\s*"([\w ]+)"')


def table(head: str) -> list[str]:
    """The first cells of the table on the page whose head begins so, without their quotes."""
    lines = PAGE[PAGE.index(f"| {head}") :].splitlines()[2:]
    rows = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize("whose", ["coordinator", "agent"])
def test_every_event_is_on_the_page(whose: str) -> None:
    of_agents = {"agent.py", "link.py", "load.py", "join.py", "keep.py", "duty.py"}
    files = [path for path in FLEET.glob("*.py") if (path.name in of_agents) == (whose == "agent")]
    logged = {event for path in files for event in EVENT.findall(path.read_text(encoding="utf-8"))}
    assert len(logged) > 4
    assert set(table(f"`event` of {'an agent' if whose == 'agent' else 'the coordinator'}")) == logged


def test_every_metric_is_on_the_page() -> None:
    suffix = {"counter": "_total"}
    labels = {"edgewise_updates": "{verdict}", "edgewise_events": "{kind}"}
    metrics = list(Metrics().registry.collect())
    names = {one.name + suffix.get(one.type, "") + labels.get(one.name, "") for one in metrics}
    assert set(table("metric")) == names


def test_every_command_is_on_the_page() -> None:
    named = {" ".join(words.split()[:2]) for words in table("command")}
    commands = {
        f"{group} {name}" for group in ("coordinator", "agent") for name in edgewise.commands[group].commands
    }
    assert named == commands


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_what_there_is(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    program, *arguments = shlex.split(line.replace("%S", "/var/lib").replace("$FLAGS", ""))
    assert program == "/opt/edgewise/bin/edgewise"
    command: click.Command = edgewise
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    given = command.make_context("", arguments).params
    assert (given["home"], given["log"]) == (Path(f"/var/lib/edgewise/{unit.stem[9:]}"), Path("-"))
    assert not re.search(r"token|password|secret|\.key", text, re.I)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_a_unit(unit: Path, tmp_path: Path) -> None:
    # A program that is there, in place of the one that an operator will have installed.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/edgewise/bin/edgewise", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- the how-to, as it stands ----

PATIENCE = 240.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextmanager
def terminal(script: str, folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell with a script, in a session of its own, all of which ends with the test."""
    where = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": where, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield shell
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def done(script: str, folder: Path, log: Path) -> None:
    with terminal(script, folder, log) as shell:
        assert shell.wait(PATIENCE) == 0, log.read_text()


def with_a_free_port(script: str) -> str:
    """The page's commands are for a machine on which nothing else listens; tests run side by side."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(probe.getsockname()[1], 65000)
    return script.replace("--address 127.0.0.1", f"--address 127.0.0.1 --port {port}")


@pytest.mark.slow
def test_the_how_to_ends_in_the_simulated_model(tmp_path: Path) -> None:
    coordinator, serve, kill, compare = (script for _, script in BLOCKS)
    init, run = coordinator.strip().splitlines()
    log, rows = tmp_path / "terminals.log", tmp_path / "fleet" / "run" / "rounds.jsonl"
    # The agent is killed once some rounds are through, as a person would.
    second = f"{serve}while [ ! -e now ]; do sleep 0.1; done\n{kill}wait\n"

    def played() -> int:
        return len(rows.read_text().splitlines()) if rows.exists() else 0

    done(with_a_free_port(init), tmp_path, log)
    with terminal(f"exec {run}", tmp_path, log) as one:
        until(lambda: (tmp_path / "fleet" / "control.sock").exists())
        with terminal(second, tmp_path, log) as two:
            until(lambda: played() >= 20)
            (tmp_path / "now").touch()
            until(lambda: played() >= 100)
            one.kill()
            one.wait()
            with terminal(f"exec {run}", tmp_path, log) as again:
                until(lambda: played() >= 200)
                again.terminate()
                assert again.wait(PATIENCE) == 0, log.read_text()
            done(run, tmp_path, log)
            assert two.wait(PATIENCE) == 0, log.read_text()
    done(compare, tmp_path, log)
    digests = re.findall(r'summary\.json:\s+"model_digest": "(\w+)"', log.read_text())
    assert len(digests) == 2 and len(set(digests)) == 1, log.read_text()
