"""The command answers quickly, and shows every setting."""

import os
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from command import ENVIRONMENT, edgewise

from edgewise.cli.run import run
from edgewise.settings import SETTINGS

ROOT = Path(__file__).parent.parent.parent
OTHERS = {
    "config_file",
    "extras",
    "out",
    "resume",
    "checkpoint_seconds",
    "tensorboard",
}  # of the command, not of a run


def seconds(*arguments: str) -> float:
    """CPU time of a command: what it takes on a machine that does nothing else."""
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "edgewise", *arguments], capture_output=True, text=True)
    after = os.times()
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Usage: ")
    return after.children_user - before.children_user + after.children_system - before.children_system


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("report", "--help")])
def test_help_comes_within_half_a_second(arguments: tuple[str, ...]) -> None:
    assert statistics.median(seconds(*arguments) for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in ("run", "reproduce", "report"))],
    ids=" ".join,
)
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    program = f"""
import sys
from edgewise.cli import main
sys.argv = ["edgewise", *{arguments}]
try:
    main()
finally:
    assert not {{"torch", "numpy", "sklearn", "matplotlib"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_command_is_the_module(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("edgewise")
    wide = {**os.environ, "COLUMNS": ENVIRONMENT["COLUMNS"]}
    done = subprocess.run([str(script), "--help"], capture_output=True, text=True, cwd=tmp_path, env=wide)
    module = edgewise("--help", folder=tmp_path)
    assert (done.returncode, module.status) == (0, 0)
    assert done.stdout == module.out
    assert {"run", "reproduce"} <= set(re.findall(r"^  (\w+)  ", done.stdout, re.M))


def test_help_of_run_shows_every_setting(tmp_path: Path) -> None:
    shown = edgewise("run", "--help", folder=tmp_path).out
    for setting in SETTINGS:
        assert re.search(rf"^  {setting.flag}[ /]", shown, re.M), setting.flag
        assert " ".join(setting.meaning.split()[:3]) in " ".join(shown.split()), setting.meaning
    for flag in ("--set", "--out", "--resume", "--checkpoint-seconds", "--tensorboard"):
        assert re.search(rf"^  {flag} ", shown, re.M), flag


def test_every_flag_is_a_setting_and_every_setting_a_flag() -> None:
    options = {option.name: option for option in run.params}
    assert set(options) == OTHERS | {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        option = options[setting.name]
        assert isinstance(option, click.Option) and option.opts == [setting.flag]
    # What is not given is None: the default of a setting has one home, and a config file's word stands.
    given = run.make_context("run", []).params
    assert {name for name in given if given[name] is not None} == {
        *("resume", "checkpoint_seconds", "extras", "tensorboard")
    }


def test_every_flag_reaches_the_config(tmp_path: Path) -> None:
    values = {
        **{"devices": 5, "partition": "labels:2", "width": 4, "norm": "layer", "algorithm": "fedavg"},
        **{"sync_every": 3, "batch": 7, "lr": 0.25, "lr_scale": 2.0, "momentum": 0.5, "nesterov": True},
        **{
            "weight_decay": 0.25,
            "decay": "weights",
            "agc": 0.125,
            "schedule": "plateau:0.5",
            "warmup_epochs": 0.25,
            "warmup_lr": 0.125,
        },
        **{"steps": 3, "augment": "crop:2", "cohort": 0.6, "server_lr": 0.5, "server_momentum": 0.25},
        **{"aggregate": "trimmed:0.4", "local_momentum": "keep", "ema": 0.5},
        **{
            "eval_every": 0,
            "fused": "off",
            "kernels": "torch",
            "accelerator": "cpu",
            "precision": "fp64",
            "threads": 1,
            "seed": 9,
        },
        **{"data": "digits", "model": "resnet18", "engine": "inline"},
        **{
            "convert": False,
            "objective": "cross-entropy:0.1",
            "head": "feature-norm:1",
            "diagnose": "full:5:2",
        },
        **{"codec": "topk:0.1:zstd", "codec_down": "int8"},
    }
    flags: list[object] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", value]
    done = edgewise("run", *flags, "--out", "run", folder=tmp_path)
    assert done.status == 0, done
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert written == {"version": 1, **values}
    left = {"data_dir", "epochs", "local_epochs", "processes", "start"}
    assert {setting.name for setting in SETTINGS} - values.keys() == left


def test_version(tmp_path: Path) -> None:
    assert edgewise("--version", folder=tmp_path).out == f"edgewise, version {version('edgewise')}\n"


def test_no_command_shows_the_help(tmp_path: Path) -> None:
    done = edgewise(folder=tmp_path)
    assert (done.status, done.err) == (2, "")
    assert done.out.rstrip() == edgewise("--help", folder=tmp_path).out.rstrip()
