"""Figures: their runs are legal at every scale, and a small one goes from data to picture, come what may."""

import csv
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from command import Running, edgewise, start, until

from edgewise import experiments, records
from edgewise.config import Config, read_toml
from edgewise.errors import EdgewiseError
from edgewise.experiments import FIGURES, Figure, Plan
from edgewise.experiments.claims import Claim
from edgewise.experiments.page import Curves
from edgewise.models.norms import Batch, Group
from edgewise.rounds import run

MANY = ("foresight", "drift", "table1")  # runs
SCALES = [(name, scale) for name, figure in FIGURES.items() for scale in figure.scales]
TINY = Config(devices=4, batch=8, width=4, steps=3, eval_every=1)
PAGE = Curves(
    labels={"b": "group norm", "a": "batch norm"},
    expected={"b": Claim("more", low=0.0), "a": Claim("less", high=1.0, of="b")},
)
FIGURE = Figure(
    title="A small figure",
    source="Figure 0",
    statement="nothing in particular.",
    scales=("demo",),
    runs=lambda scale: {"a": replace(TINY, norm=Batch()), "b": replace(TINY, norm=Group())},
    page=PAGE,
)
PLAN = Plan("small", "demo", FIGURE, FIGURE.runs("demo"))


def tiny(config: Config) -> Config:
    """The same run, made as short as can be: one step of a small model on digits."""
    shape = {"data": "digits", "data_dir": None, "width": 4, "batch": 8, "augment": None}
    short = {"epochs": None, "steps": 1, "eval_every": 0, "warmup_epochs": 0.0, "warmup_lr": None}
    return replace(config, **shape, **short, seed=0)


# ---- what is planned ----


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_run_is_a_config_that_comes_back(name: str, scale: str, tmp_path: Path) -> None:
    plan = experiments.plan(name, scale, seed=3, data_dir="/somewhere")
    page, first = plan.figure.page, plan.figure.runs(scale)
    if isinstance(page, Curves):
        assert set(plan.runs) == set(page.labels) == set(page.expected)
    for label, config in plan.runs.items():
        path = tmp_path / f"{label}.toml"
        path.write_text(config.toml())
        assert Config.of(read_toml(path)) == config
        assert Config.of(config.flat()) == config
        assert config.seed == 3 + first[label].seed
        assert config.data_dir == (None if config.data == "digits" else "/somewhere")


# foresight deals data in thirty ways, drift and table1 play thirty runs.
@pytest.mark.filterwarnings("ignore:batch. .* is more than device:edgewise.errors.EdgewiseWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in MANY else n for n in FIGURES]
)
def test_every_run_plays_a_round(name: str, tmp_path: Path) -> None:
    short = {
        tiny(config)
        for scale in FIGURES[name].scales
        for config in experiments.plan(name, scale).runs.values()
    }
    for number, config in enumerate(short):
        (row,) = run(config, tmp_path / str(number))
        assert row.round == 1 and row.accuracy is not None


def test_runs_of_a_figure_differ_only_in_what_the_figure_is_about() -> None:
    for name, scale in SCALES:
        flats = [config.flat() for config in experiments.plan(name, scale).runs.values()]
        same = {"data", "width", "steps", "epochs", "devices", "batch", "augment"}
        same |= {"seed", "eval_every"} if name == "figure2" else set()
        same -= {"batch"} if FIGURES[name].family == "large-batch" else set()
        same -= {"augment"} if name == "table1" else set()  # ours has its own where runs are long
        for setting in sorted(same):
            assert len({flat[setting] for flat in flats}) == 1, (name, scale, setting)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("figure9",), r"reproduce: 'figure9' is unknown; one of: figure2, figure3, .*, drift, all$"),
        (("figure2", "--scale", "huge"), "--scale: 'huge' is unknown; one of: demo, laptop, paper"),
        (("figure2", "--jobs", 0), "--jobs"),
        (("figure2", "--seed", "x"), "--seed"),
        (("figure2", "--out", "/dev/null/x"), "/dev/null/x.*: cannot be written"),
        ((), "Missing argument"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[object, ...], says: str, tmp_path: Path) -> None:
    error = edgewise("reproduce", *arguments, folder=tmp_path).error
    assert re.search(says, error), error
    assert list(tmp_path.iterdir()) == []


# ---- from data to picture ----


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figure")
    experiments.play(PLAN, out, jobs=2)
    experiments.write(PLAN, out)
    return out


def test_a_figure_has_its_numbers(played: Path) -> None:
    with (played / "small.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["run"], line["step"]) for line in lines] == [(n, s) for n in "ab" for s in "123"]
    for name in PLAN.runs:
        rows = records.rows(played / "runs" / name)
        shown = [line for line in lines if line["run"] == name]
        assert [float(line["accuracy"]) for line in shown] == [row["accuracy"] for row in rows]
        assert [float(line["train_loss"]) for line in shown] == [row["train_loss"] for row in rows]


def test_a_figure_has_its_picture(played: Path) -> None:
    png = (played / "small.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    wide, high = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert wide > 800 and high > 500


def test_a_figure_has_its_table(played: Path) -> None:
    page = (played / "small.md").read_text()
    assert page == experiments.write(PLAN, played)
    assert page.startswith("# A small figure\n") and "nothing in particular." in page
    table = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in table] == ["| group norm", "| batch norm"]
    for row, name in zip(table, "ba", strict=True):
        summary = records.summary(played / "runs" / name) or {}
        claim = PAGE.expected[name]
        assert row[1:3] == [claim.words, claim.rule(PAGE.labels)] and row[6] == "matches"
        assert row[3:6] == [f"{summary[k]:.1%}" for k in ("accuracy", "last10_accuracy", "best_accuracy")]
    assert "Command: `edgewise reproduce small --scale demo`" in page


def test_runs_of_a_figure_are_runs_like_any(played: Path, tmp_path: Path) -> None:
    for name, config in PLAN.runs.items():
        for _ in run(config, tmp_path / name):
            pass
        alone, there = records.summary(tmp_path / name) or {}, records.summary(played / "runs" / name) or {}
        assert alone["model_digest"] == there["model_digest"]


@pytest.mark.slow
def test_runs_whose_names_hold_dots_are_runs_of_their_own(tmp_path: Path) -> None:
    names = ("topk-0.02", "topk-0.04", "topk-0.02-seed1")
    plan = replace(PLAN, runs={name: replace(TINY, seed=number) for number, name in enumerate(names)})
    experiments.play(plan, tmp_path, jobs=2)
    for number, name in enumerate(names):
        assert Config.of(read_toml(tmp_path / "runs" / name / records.CONFIG)).seed == number
        assert (tmp_path / "runs" / f"{name}.log").exists()


def test_a_figure_is_not_played_over_another(played: Path) -> None:
    with pytest.raises(EdgewiseError, match="holds a run already; give --resume, or another --out"):
        experiments.play(PLAN, played)


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    plan = replace(PLAN, runs={"broken": replace(TINY, devices=2000), "never begun": TINY})
    with pytest.raises(EdgewiseError) as told:
        experiments.play(plan, tmp_path, jobs=1)
    message, log = str(told.value), tmp_path / "runs" / "broken.log"
    assert message.startswith("run broken stopped with status 2: edgewise: 2000 devices cannot share 1438 ")
    assert message.endswith(f"(see {log})") and "\n" not in message
    assert not records.holds_run(tmp_path / "runs" / "never begun")


@pytest.mark.slow
def test_a_finished_figure_is_not_played_again(played: Path) -> None:
    before = {path: path.read_bytes() for path in (played / "runs").glob("*/*")}
    experiments.play(PLAN, played, resume=True, jobs=2)
    assert {path: path.read_bytes() for path in (played / "runs").glob("*/*")} == before


# ---- cut off ----

# Plays the plan, made longer, in a process of its own, the first of its group.
PROGRAM = """
import os, sys
from dataclasses import replace
from pathlib import Path
os.setsid()
sys.path.insert(0, sys.argv[1])
from test_experiments import LONG
from edgewise import experiments
experiments.play(LONG, Path("out"), resume=True, jobs=2)
"""
LONG = replace(PLAN, runs={n: replace(c, steps=1200, eval_every=600) for n, c in PLAN.runs.items()})


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("alone")
    for name, config in LONG.runs.items():
        for _ in run(config, folder / name):
            pass
    return found(folder)


def found(folder: Path) -> dict[str, str]:
    return {name: (records.summary(folder / name) or {})["model_digest"] for name in LONG.runs}


def begun(folder: Path) -> Running:
    """The plan at play, with every run some rounds on its way."""
    running = start(Path(__file__).parent, folder=folder, program=PROGRAM)
    until(lambda: all(len(records.rows(folder / "out" / "runs" / name)) > 20 for name in LONG.runs))
    return running


def finish(folder: Path) -> None:
    done = start(Path(__file__).parent, folder=folder, program=PROGRAM).wait()
    assert done.status == 0, done


@pytest.mark.slow
def test_a_power_cut(digests: dict[str, str], tmp_path: Path) -> None:
    running = begun(tmp_path)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    finish(tmp_path)
    assert found(tmp_path / "out" / "runs") == digests


@pytest.mark.slow
def test_ctrl_c_reaches_every_run(digests: dict[str, str], tmp_path: Path) -> None:
    running = begun(tmp_path)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    assert running.wait().status != 0
    for name in LONG.runs:
        assert "edgewise: interrupted" in (tmp_path / "out" / "runs" / f"{name}.log").read_text()
    finish(tmp_path)
    assert found(tmp_path / "out" / "runs") == digests


@pytest.mark.slow
def test_runs_that_outlive_their_parent_are_not_disturbed(digests: dict[str, str], tmp_path: Path) -> None:
    running = begun(tmp_path)
    running.send(signal.SIGKILL)
    running.wait()
    again = start(Path(__file__).parent, folder=tmp_path, program=PROGRAM).wait()
    assert again.status != 0 and "stopped with status 2" in again.err.splitlines()[-1]
    logs = [path.read_text() for path in (tmp_path / "out" / "runs").glob("*.log")]
    assert any("another process goes on with this run" in log for log in logs)
    until(lambda: all(records.summary(tmp_path / "out" / "runs" / name) for name in LONG.runs))
    assert found(tmp_path / "out" / "runs") == digests
