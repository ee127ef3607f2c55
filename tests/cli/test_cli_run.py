"""Bad input to `edgewise run`: one line that says what, where and what is legal, and exit status 2."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from command import edgewise, start, until

from edgewise import records
from edgewise.cli.progress import show
from edgewise.config import Config
from edgewise.data.cifar10 import FILES, FOLDER
from edgewise.rounds import run

TINY = ("run", "--devices", 4, "--batch", 8, "--width", 4, "--steps", 4, "--eval-every", 0)
FEDAVG = ("--algorithm", "fedavg")
NO_CUDA = "import torch\ntorch.cuda.is_available = lambda: False\nimport edgewise.cli\nedgewise.cli.main()"

# What is given, and all that must stand in the one line.
BAD: dict[str, tuple[tuple[object, ...], list[str]]] = {
    "norm": (
        ("--norm", "nonsense"),
        ["norm", "'nonsense'", "batch, batch-sync, batch-local, batch-renorm", "layer", "none"],
    ),
    "algorithm": (("--algorithm", "nonsense"), ["algorithm", "'nonsense'", "sync-sgd, fedavg"]),
    "data": (
        ("--data", "nonsense"),
        ["data", "'nonsense'", "digits, cifar10, folder, package.module:function"],
    ),
    "model": (("--model", "nonsense"), ["model", "nonsense", "resnet18, fixup-resnet18", "module:function"]),
    "partition": (("--partition", "nonsense"), ["partition", "iid, labels:K[:overlap], dirichlet:ALPHA"]),
    "codec": (("--codec", "nonsense"), ["codec", "'nonsense'", "one of: none"]),
    "schedule": (("--schedule", "nonsense"), ["schedule", "constant, plateau", "cosine"]),
    "precision": (("--precision", "nonsense"), ["precision", "fp32, bf16, fp64"]),
    "engine": (("--engine", "nonsense"), ["engine", "inline"]),
    "accelerator": (("--accelerator", "nonsense"), ["accelerator", "auto, cpu, cuda"]),
    "fused": (("--fused", "nonsense"), ["fused", "auto, on, off"]),
    "kernels": (("--kernels", "nonsense"), ["kernels", "auto, torch, compiled"]),
    "kernels of no norm": (("--kernels", "compiled", "--norm", "batch"), ["kernels", "no group norm"]),
    "augment": (("--augment", "nonsense"), ["'nonsense'", "crop[:PIXELS], flip, cutout:SIZE"]),
    "too many classes": (("--partition", "labels:11"), ["labels:11", "1 to 10"]),
    "too many devices": (("--devices", 2000), ["2000 devices", "1438 examples"]),
    "no class": (("--partition", "labels:0"), ["labels:0", "1 up to"]),
    "no form": (("--partition", "labels"), ["labels:K[:overlap]"]),
    "alpha": (("--partition", "dirichlet:-1"), ["dirichlet:-1", "above 0"]),
    "negative steps": (("--steps", -5), ["steps", "-5", "from 1 "]),
    "no steps": (("--steps", 0), ["steps", "0", "from 1 "]),
    "no epochs": (("--epochs", 1e-9), ["epochs, steps"]),
    "negative lr": (("--lr", -1), ["lr", "-1.0", "from 0 "]),
    "lr nan": (("--lr", "nan"), ["lr", "nan", "from 0 "]),
    "lr inf": (("--lr", "inf"), ["lr", "inf", "from 0 "]),
    "lr word": (("--lr", "high"), ["--lr", "'high'", "not a valid float"]),
    "momentum nan": (("--momentum", "nan"), ["momentum", "nan"]),
    "no batch": (("--batch", 0), ["batch", "0", "from 1 "]),
    "no devices": (("--devices", 0), ["devices", "0", "from 1 "]),
    "half a device": (("--devices", 2.5), ["--devices", "'2.5'", "not a valid integer"]),
    "no width": (("--width", 0), ["width", "0", "from 1 "]),
    "threads": (("--threads", 10**12), ["threads", "from 1 to 1024"]),
    "sync-every": (("--sync-every", 10), ["sync_every", "sync-sgd", "10", "fedavg"]),
    "batch-sync fedavg": (("--norm", "batch-sync", *FEDAVG), ["batch-sync", "lockstep", "fedavg"]),
    "batch-sync loop": (("--norm", "batch-sync", "--fused", "off"), ["batch-sync", "fused is off"]),
    "fused fedavg": (("--fused", "on", "--algorithm", "fedprox"), ["fused", "use auto or off"]),
    "server-lr": (("--server-lr", 1), ["server_lr", "sync-sgd", "fedavg"]),
    "cohort of none": (("--cohort", 0), ["cohort", "0 of 4", "1 to 4"]),
    "cohort of too many": (("--cohort", 11), ["cohort", "11 of 4", "1 to 4"]),
    "warmup": (("--lr", 0, "--warmup-lr", 0.1), ["warmup_lr", "lr * lr_scale is 0"]),
    "checkpoints": (("--checkpoint-seconds", "nan"), ["checkpoint_seconds", "nan"]),
    "set": (("--set", "algorithm.x=1"), ["algorithm.x", "sgd.scalar_share"]),
    "set form": (("--set", "x"), ["--set", "'x'", "part.key=value"]),
    "set value": (("--set", "sgd.scalar_share=much"), ["sgd.scalar_share", "'much'", "a number"]),
    "set nan": (("--set", "sgd.lr=nan"), ["sgd.lr", "nan"]),
    "data module": (("--data", "nosuch:thing"), ["'nosuch:thing'", "No module named 'nosuch'", "digits"]),
    "data function": (("--data", "os:getcwd"), ["'os:getcwd'", "edgewise.data.Dataset", "str"]),
    "model module": (("--model", "nosuch:thing"), ["nosuch:thing", "No module named 'nosuch'", "resnet18"]),
    "model function": (("--model", "os:getcwd"), ["os:getcwd", "the call failed"]),
    "digits' folder": (("--data-dir", "x"), ["digits", "x"]),
    "no cifar10": (("--data", "cifar10", "--data-dir", "."), ["lacks", "data_batch_1", "test_batch", FOLDER]),
    "option": (("--learning-rate", 1), ["--learning-rate"]),
    "missing value": (("--lr",), ["--lr", "requires an argument"]),
    "config file": (("nosuch.toml",), ["nosuch.toml", "no such config file"]),
    "two files": (("a.toml", "b.toml"), ["b.toml"]),
    "resume what": (("--resume",), ["--resume", "--out DIR"]),
}


@pytest.mark.parametrize(("flags", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(flags: tuple[object, ...], words: list[str], tmp_path: Path) -> None:
    error = edgewise(*TINY, *flags, folder=tmp_path).error
    assert [word for word in words if word not in error] == [], error
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_command_that_is_none(tmp_path: Path) -> None:
    assert "'train'" in edgewise("train", folder=tmp_path).error


def test_a_real_process_ends_in_the_same_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgewise", *map(str, TINY), "--norm", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"edgewise: {edgewise(*TINY, '--norm', 'nonsense', folder=tmp_path).error}\n"


def test_an_accelerator_that_is_not_there(tmp_path: Path) -> None:
    error = edgewise(*TINY, "--accelerator", "cuda", folder=tmp_path, program=NO_CUDA).error
    assert error == "accelerator: cuda is not available here; use cpu"


def test_a_truncated_data_file(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"\x80\x02}q\x01U\x0bbatch_label")
    error = edgewise(*TINY, "--data", "cifar10", "--data-dir", tmp_path, folder=tmp_path).error
    assert error.startswith(f"CIFAR-10: cannot read {tmp_path / 'data_batch_1'}: ")


def test_a_folder_named_by_the_environment(tmp_path: Path) -> None:
    error = edgewise(*TINY, "--data", "cifar10", folder=tmp_path, EDGEWISE_DATA="nosuch").error
    assert error.startswith("CIFAR-10: nosuch lacks data_batch_1, ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version = 2", "a config of version 2; this edgewise reads version 1"),
        (b"lr = ", "not a readable TOML file"),
        (b"\xff", "not a readable TOML file"),
        (b"learning_rate = 1", "'learning_rate' is unknown; one of: data, data_dir, "),
        (b"steps = -5", "steps: -5 is out of range"),
    ],
)
def test_a_bad_config_file_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    assert edgewise("run", "c.toml", folder=tmp_path).error.startswith(f"c.toml: {says}")


@pytest.mark.parametrize("out", ["file/run", "/dev/null/run", "/proc/run", "x" * 300])
def test_a_folder_that_cannot_be_made(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert re.fullmatch(
        rf"{out}: cannot be written \(.+\)", edgewise(*TINY, "--out", out, folder=tmp_path).error
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    for out in ("closed", "closed/run"):
        assert "cannot be written (Permission denied)" in edgewise(*TINY, "--out", out, folder=tmp_path).error


def test_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    assert edgewise(*TINY, "--out", "run", folder=tmp_path).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    error = edgewise(*TINY, "--out", "run", folder=tmp_path).error
    assert error == "run: holds a run already; give --resume, or another --out"
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_without_out_takes_the_next_free_folder(tmp_path: Path) -> None:
    for number in ("001", "002"):
        done = edgewise(*TINY, folder=tmp_path)
        assert done.status == 0 and done.out.startswith(f"runs/{number}: ")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["001", "002"]


def test_flags_go_before_the_file_and_set_adds_to_it(tmp_path: Path) -> None:
    plain = 'lr = 0.5\nmomentum = 0.5\nschedule = "plateau"\n'
    (tmp_path / "c.toml").write_text(f"{plain}[set]\nsgd.scalar_share = 0.2\nschedule.patience = 7\n")
    flags = ("--lr", 0.25, "--set", "schedule.patience=3", "--set", "schedule.drop=0.5")
    assert edgewise(*TINY, "c.toml", *flags, "--out", "run", folder=tmp_path).status == 0
    written = (tmp_path / "run" / "config.toml").read_text()
    for line in ("lr = 0.25", "momentum = 0.5", 'schedule = "plateau:0.5:3"', '"sgd.scalar_share" = 0.2'):
        assert f"\n{line}\n" in written


@pytest.mark.parametrize("action", ["default", "ignore", "error"])
def test_a_batch_beyond_a_device_s_data_is_one_note(action: str, tmp_path: Path) -> None:
    program = f"import warnings, edgewise.cli\nwarnings.simplefilter('{action}')\nedgewise.cli.main()"
    done = edgewise(*TINY, "--batch", 400, "--steps", 2, folder=tmp_path, program=program)
    assert done.status == 0
    notes = [line for line in done.err.splitlines() if line.startswith("edgewise: note: ")]
    assert len(notes) == 1 and "batch: 400 is more than device 0 holds (360 examples) and 3 more" in notes[0]


def test_training_that_diverges(tmp_path: Path) -> None:
    flags = ("--lr", 1e6, "--steps", 30, "--checkpoint-seconds", 0, "--out", "run")
    done = edgewise(*TINY, *flags, folder=tmp_path)
    assert (done.status, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert re.match(r"edgewise: round \d+, device \d: the loss is (nan|inf); training diverged", last)
    assert "Traceback" not in done.err
    kept = records.Checkpoint.load(tmp_path / "run" / records.CHECKPOINT)
    assert kept.note["round"] == int(last.split()[2].strip(",")) - 1
    assert records.summary(tmp_path / "run") is None


def test_what_goes_wrong_says_so_where_it_can(tmp_path: Path) -> None:
    full = "import os, edgewise.cli\nos.dup2(os.open('/dev/full', os.O_WRONLY), {})\nedgewise.cli.main()"
    done = edgewise(*TINY, "--out", "a", folder=tmp_path, program=full.format(1))
    assert done.status == 2 and done.err.splitlines()[-1] == "edgewise: output: No space left on device"
    assert edgewise(*TINY, "--out", "b", folder=tmp_path, program=full.format(2)).status == 2


def test_what_is_shown(tmp_path: Path) -> None:
    done = edgewise(*TINY, "--eval-every", 2, "--out", "run", folder=tmp_path)
    assert done.status == 0
    name, _, shown = done.out.partition(": ")
    summary = records.summary(tmp_path / "run") or {}
    assert name == "run" and json.loads(shown).items() <= summary.items()
    lines = [line for line in done.err.splitlines() if line.startswith("round ")]
    rows = [row for row in records.rows(tmp_path / "run") if "accuracy" in row]
    assert len(lines) == len(rows) == 2
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(f"round {row['round']}/4  step {row['step']}  loss {row['train_loss']:.3f}  ")
        assert f"accuracy {row['accuracy']:.1%}" in line
    assert done.err.count("examples") == 1 + len(lines), (
        "who holds what is shown once, each line has its speed"
    )


def test_a_terminal_sees_a_bar(tmp_path: Path) -> None:
    screen, terminal = os.openpty()
    os.set_blocking(screen, False)
    shown = bytearray()

    def complete() -> bool:
        with suppress(BlockingIOError):
            shown.extend(os.read(screen, 65536))
        return b"round 4/4" in shown

    stderr = f"import os, edgewise.cli\nos.dup2(os.open({os.ttyname(terminal)!r}, os.O_RDWR), 2)\n"
    program = f"{stderr}edgewise.cli.main()"
    running = start(*TINY, "--out", "run", folder=tmp_path, program=program, TERM="xterm")
    until(complete)
    assert b"\x1b[" in shown and b"examples/s" in shown and b"accuracy" in shown
    assert running.wait().status == 0
    os.close(terminal)
    os.close(screen)


def test_names_that_are_no_ascii(tmp_path: Path) -> None:
    out = "né x\N{GRINNING FACE}"
    for flags in ((), ("--resume",)):
        done = edgewise(*TINY, "--out", out, *flags, folder=tmp_path)
        assert done.status == 0 and done.out.startswith(f"{out}: ")
    assert edgewise(*TINY, "--out", os.fsdecode(b"\xff"), folder=tmp_path).status == 0


def test_memory_that_does_not_suffice(tmp_path: Path) -> None:
    done = edgewise(*TINY, "--augment", "crop:10000000", folder=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1 and done.err.startswith("edgewise: not enough memory (")
    assert done.err.endswith("; a smaller batch or width needs less\n")


class Asked:
    asked = True


def test_ctrl_c_in_the_last_round_finishes_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = Config(devices=4, batch=8, width=4, steps=1)
    assert show(run(config, tmp_path), tmp_path, Asked())
    assert capfd.readouterr().out.startswith(f"{tmp_path}: ")
