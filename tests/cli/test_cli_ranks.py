"""`edgewise run` over several processes: its own, whichever of them dies, and those of torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import rank_runs as ranks
from command import ENVIRONMENT, Running, edgewise, start, until

from edgewise import records
from edgewise.config import Config
from edgewise.engines.torchrun.group import Group
from edgewise.records import Checkpoint

RUN = ("run", "--devices", 4, "--batch", 8, "--width", 4, "--algorithm", "fedavg", "--sync-every", 4)
LONG = (*RUN, "--steps", 80, "--codec", "topk:0.1", "--eval-every", 0, "--checkpoint-seconds", 0)
GOES_ON = "--resume goes on from what was committed"


def digest(folder: Path) -> str:
    summary = records.summary(folder)
    assert summary is not None
    return str(summary["model_digest"])


def hired(running: Running) -> list[int]:
    """The processes that a command has started."""
    return [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def alone(pair: Group, folder: Path) -> str:
    """What `LONG` comes to on two ranks when nothing happens to it."""
    sizes = {"devices": 4, "batch": 8, "width": 4, "algorithm": "fedavg", "sync_every": 4}
    config = Config.of({**sizes, "steps": 80, "codec": "topk:0.1", "eval_every": 0, "accelerator": "cpu"})
    list(ranks.play(pair, config, folder))
    return digest(folder)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_in_one_line_and_it_goes_on(pair: Group, tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = start(*LONG, "--processes", 2, "--out", out, folder=tmp_path)
    until(lambda: len(records.rows(out)) >= 3)
    (other,) = hired(running)
    os.kill(other, signal.SIGKILL)
    done = running.wait()
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"edgewise: rank 1 ended with status -9; {GOES_ON}"
    assert "Traceback" not in done.err
    kept = records.rows(out)
    again = edgewise("run", "--out", out, "--resume", folder=tmp_path)  # its config says how many processes
    assert again.status == 0, again.err
    assert records.rows(out)[: len(kept) - 1] == kept[: len(kept) - 1]
    assert digest(out) == alone(pair, tmp_path / "alone")


@pytest.mark.slow
def test_ctrl_c_commits_the_round_and_ends_all_processes(pair: Group, tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = start(*LONG, "--checkpoint-seconds", 1000, "--processes", 2, "--out", out, folder=tmp_path)
    until(lambda: len(records.rows(out)) >= 3)
    others = hired(running)
    running.send(signal.SIGINT)
    done = running.wait()
    assert (done.status, done.out) == (130, "")
    assert done.err.endswith(f"edgewise: interrupted; {GOES_ON.replace('goes on', 'continues')}\n")
    assert gone(others)
    kept = records.rows(out)
    assert Checkpoint.load(out / records.CHECKPOINT).note["round"] == len(kept) >= 3
    assert edgewise("run", "--out", out, "--resume", folder=tmp_path).status == 0
    assert records.rows(out)[: len(kept)] == kept
    assert digest(out) == alone(pair, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_first(number: signal.Signals, tmp_path: Path) -> None:
    """A round of minutes; two Ctrl-C's end it at once."""
    out = tmp_path / "run"
    endless = (*RUN[:-1], 100_000, "--steps", 100_000, "--processes", 2, "--out", out)
    running = start(*endless, folder=tmp_path)
    until((out / records.CONFIG).exists)
    others = hired(running)
    running.send(number)
    if number == signal.SIGINT:
        until(lambda: "stopping after this round" in running.err)
        running.send(number)
    done = running.wait()
    assert done.status == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in done.err
    until(lambda: gone(others))


@pytest.mark.slow
def test_tiny_work_is_left_to_one_process(tmp_path: Path) -> None:
    done = edgewise(*RUN, "--steps", 8, "--processes", "auto", "--out", "run", folder=tmp_path)
    assert done.status == 0, done.err
    written = tomllib.loads((tmp_path / "run" / records.CONFIG).read_text())
    assert (written["engine"], written["processes"]) == ("torchrun", "1")
    plain = edgewise(*RUN, "--steps", 8, "--out", "plain", folder=tmp_path)
    assert plain.status == 0 and digest(tmp_path / "plain") == digest(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--processes", "some"),
            "processes: 'some' is not a number of processes; legal: auto, or 1 to 1024",
        ),
        (
            ("--processes", "2", "--engine", "fleet"),
            "processes: a fleet's devices have one each; leave it out",
        ),
        (
            ("--processes", "2", "--norm", "batch-sync"),
            "norm: batch-sync needs all devices in lockstep (sync-sgd, a lossless codec, fused), "
            "but its devices are in 2 processes",
        ),
    ],
)
def test_what_cannot_be_is_one_line(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = edgewise("run", "--steps", 2, "--width", 4, *flags, folder=tmp_path)
    assert (done.status, done.error) == (2, says)


# ---- torchrun ----


def torchrun(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [*program, *map(str, words)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_starts_the_ranks(pair: Group, tmp_path: Path) -> None:
    run = ("-m", "edgewise", *LONG, "--engine", "torchrun")
    done = torchrun(tmp_path, *run, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: {") == 1, "only rank 0 speaks"
    assert digest(tmp_path / "run") == alone(pair, tmp_path / "alone")
    again = torchrun(tmp_path, *run, "--out", "run", "--resume")
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    done = torchrun(tmp_path, "-m", "edgewise", *LONG, "--out", "other")
    assert done.returncode != 0
    assert "edgewise: engine: torchrun started 2 processes; give --engine torchrun" in done.stderr
    done = torchrun(tmp_path, *run, "--processes", 3, "--out", "other")
    assert "edgewise: processes: torchrun started 2, not 3; leave it out" in done.stderr


@pytest.mark.slow
def test_torchrun_restarts_a_lost_rank_and_the_run_goes_on(pair: Group, tmp_path: Path) -> None:
    """A sitecustomize that kills rank 1 a while after its first start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading\n"
        "if os.environ.get('RANK') == '1' and os.environ.get('TORCHELASTIC_RESTART_COUNT') == '0':\n"
        "    def end():\n"
        "        import time\n"
        "        while not os.path.exists('run/checkpoint.safetensors'):\n"
        "            time.sleep(0.01)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    threading.Thread(target=end, daemon=True).start()\n"
    )
    words = ("--max-restarts", 2, "-m", "edgewise", *LONG, "--engine", "torchrun", "--out", "run", "--resume")
    sys.path.insert(0, str(tmp_path))
    try:
        done = torchrun(tmp_path, *words)
    finally:
        sys.path.remove(str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "failed (exitcode: -9) local_rank: 1" in done.stderr
    assert digest(tmp_path / "run") == alone(pair, tmp_path / "alone")
