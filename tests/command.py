"""The command as a process of its own, without waiting for PyTorch to be imported every time.

One server imports everything once and forks: each call is a real process, with its own exit status, output,
limits and signals, in milliseconds instead of seconds. It has one thread, so forking it is safe.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SERVER = r"""
import importlib, json, os, resource, signal, sys, traceback
import edgewise.cli, edgewise.cli.progress, edgewise.rounds, edgewise.experiments
import rich.console, rich.progress, sklearn.datasets, torch

def work(task):
    # Where the tests run in a shell's background it ignores SIGINT, and what it starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(task["folder"])
    for number, path in enumerate([os.devnull, task["out"], task["err"]]):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    os.environ.update(task["environment"])
    if task["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"], resource.RLIM_INFINITY))
    sys.argv = ["edgewise", *task["arguments"]]
    if task["program"] is None:
        edgewise.cli.main()
    else:
        exec(compile(task["program"], "<program>", "exec"), {"__name__": "__main__"})

def status_of(task):
    try:
        work(task)
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        _, status = os.waitpid(task["wait"], 0)
        answer = os.waitstatus_to_exitcode(status)
    elif "load" in task:
        for name in task["load"]:
            importlib.import_module(name)
        answer = 0
    else:
        answer = os.fork()
        if not answer:
            status = status_of(task)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(answer, flush=True)
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "100"}
PATIENCE = 120.0  # seconds for what takes a fraction of one on an idle machine


@dataclass(frozen=True)
class Done:
    """A process that has ended: its exit status (minus the signal where one killed it) and its output."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a user's mistake; AssertionError if it is more, or less, than that."""
        assert self.status == 2, self
        assert self.out == "", self
        assert self.err.startswith("edgewise: ") and self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self
        return self.err.removeprefix("edgewise: ").rstrip("\n")


class Running:
    """A process that goes on."""

    def __init__(self, pid: int, out: Path, err: Path) -> None:
        self.pid, self._out, self._err = pid, out, err
        self._done: Done | None = None

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)  # not reaped before `wait`, so the id is still this process's

    @property
    def ended(self) -> bool:
        """Whether it has ended, so that `wait` does not wait."""
        if self._done is not None:
            return True
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def wait(self) -> Done:
        if self._done is None:
            status = _ask({"wait": self.pid})
            self._done = Done(status, self._out.read_text(), self.err)
        return self._done


def start(
    *arguments: object,
    folder: Path,
    program: str | None = None,
    limit: int | None = None,
    **environment: str,
) -> Running:
    """Start `edgewise ARGUMENTS` (or a Python program) in a folder.

    `limit` is the largest file it may write, in bytes: more is refused as on a full disk.
    """
    paths = [_scratch() / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
    for path in paths:
        path.touch()
    task = {"arguments": [str(a) for a in arguments], "program": program, "limit": limit}
    task |= {"folder": str(folder), "environment": environment}
    return Running(_ask({**task, "out": str(paths[0]), "err": str(paths[1])}), *paths)


def edgewise(*arguments: object, folder: Path, **options: Any) -> Done:
    """Run `edgewise ARGUMENTS` in a folder, to its end."""
    return start(*arguments, folder=folder, **options).wait()


def load(*modules: str) -> None:
    """Import modules once for all processes that are started from here on."""
    _ask({"load": modules})


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, looking every few milliseconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.003)


@cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="edgewise-tests-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    atexit.register(_close, server)
    return server


def _close(server: subprocess.Popen[str]) -> None:
    server.communicate()  # end of input ends it


def _ask(task: dict[str, Any]) -> int:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(task) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())
