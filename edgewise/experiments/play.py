"""Play a figure's runs, several at a time, each in a process of its own with one thread.

The runs write their records as any run does; what is shown here is read back from those files, so a plan that
is cut off anywhere goes on with `resume`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from edgewise import records
from edgewise.errors import EdgewiseError
from edgewise.experiments.base import Plan
from edgewise.reconcile import reconcile
from edgewise.rounds import total_rounds

POLL_SECONDS = 0.5


@dataclass
class Job:
    """One run of a plan: its folder, its bar, and its process once started."""

    name: str
    folder: Path
    bar: TaskID
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return _beside(self.folder, ".log")


def play(plan: Plan, out: Path, *, resume: bool = False, jobs: int | None = None) -> None:
    """Play every run of `plan` into `out`/runs/NAME; with `resume`, only what is left of them.

    `jobs` runs go on at a time, by default as many as there are cores. EdgewiseError if a run fails. One that
    diverges has not failed where the figure counts that as a result.
    """
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description:20}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        disable=not console.is_terminal,
    )
    if not resume:
        check_free(plan, out)
    waiting = _prepare(plan, out, bars)
    for job in waiting:
        _look(job, bars)
    waiting = [job for job in waiting if not _finished(plan, job)]
    running: list[Job] = []
    with bars:
        try:
            while waiting or running:
                while waiting and len(running) < (jobs or os.cpu_count() or 1):
                    running.append(_start(waiting.pop(0)))
                time.sleep(POLL_SECONDS)
                for job in list(running):
                    _look(job, bars)
                    if _ended(plan, job, console):
                        running.remove(job)
        finally:
            _stop(running)


def check_free(plan: Plan, out: Path) -> None:
    """EdgewiseError if a run of `plan` is in `out` already."""
    for folder in (out / "runs" / name for name in plan.runs):
        if folder.exists():
            raise EdgewiseError(f"{folder}: holds a run already; give --resume, or another --out")


def _prepare(plan: Plan, out: Path, bars: Progress) -> list[Job]:
    jobs = []
    for name, config in plan.runs.items():
        folder = out / "runs" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgewiseError(f"{folder}: cannot be written ({error.strerror})") from None
        records.write(_beside(folder, ".toml"), config.toml())
        jobs.append(Job(name, folder, bars.add_task(name, total=None, words="")))
    return jobs


def _finished(plan: Plan, job: Job) -> bool:
    """Whether there is nothing left to play; EdgewiseError if what is there is a run of other settings."""
    if not (records.summary(job.folder) or _diverged(plan, job)):
        return False
    reconcile(job.folder / records.CONFIG, plan.runs[job.name])
    return True


def _diverged(plan: Plan, job: Job) -> bool:
    return plan.figure.diverging and records.diverged(job.folder)


def _beside(folder: Path, suffix: str) -> Path:
    """A file beside a run's folder. A name may hold dots, as that of "topk-0.02" does."""
    return folder.with_name(folder.name + suffix)


def _start(job: Job) -> Job:
    """Start a run. It begins at the beginning where nothing was committed, so `--resume` is always right."""
    command = [sys.executable, "-m", "edgewise", "run", str(_beside(job.folder, ".toml"))]
    with job.log.open("ab") as log:
        job.process = subprocess.Popen(
            [*command, "--out", str(job.folder), "--resume"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return job


def _look(job: Job, bars: Progress) -> None:
    rows = records.rows(job.folder)
    if rows:
        accuracies = [row["accuracy"] for row in rows if "accuracy" in row]
        words = f"accuracy {accuracies[-1]:.1%}" if accuracies else ""
        bars.update(job.bar, total=total_rounds(job.folder), completed=rows[-1]["round"], words=words)


def _ended(plan: Plan, job: Job, console: Console) -> bool:
    """Whether a run has ended; EdgewiseError with its own last line if it failed."""
    assert job.process is not None
    status = job.process.poll()
    if status is None:
        return False
    if status != 0 and _diverged(plan, job):
        console.print(f"{job.name}: diverged after {len(records.rows(job.folder))} rounds")
        return True
    if status != 0:
        lines = job.log.read_text(errors="replace").strip().splitlines() or ["no output"]
        words = [line for line in lines if line.startswith("edgewise: ")] or lines
        raise EdgewiseError(f"run {job.name} stopped with status {status}: {words[-1]} (see {job.log})")
    summary = records.summary(job.folder) or {}
    if not console.is_terminal:
        console.print(f"{job.name}: accuracy {summary['accuracy']:.1%} in {summary['seconds']:.0f} s")
    return True


def _stop(running: list[Job]) -> None:
    """Let what still runs commit its round and end: one interrupt each, then wait."""
    for job in running:
        if job.process is not None and job.process.poll() is None:
            job.process.send_signal(2)
    for job in running:
        if job.process is not None:
            job.process.wait()
