"""Runs read back: finished, running, old and damaged; what they cost, and what tells them apart."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from written import learning, row, write_run

from edgewise.cohorts import cohort
from edgewise.config import Config
from edgewise.errors import EdgewiseError
from edgewise.network import Link, Network
from edgewise.report.compare import LONGEST, differences, labels, shared
from edgewise.report.runs import Run, read

NETWORK = Network(Link(0.008, 0.016))  # a thousand bytes a second up, two thousand down


def one(folder: Path, network: Network | None = None) -> Run:
    (run,) = read([folder], network)
    return run


def test_a_run_has_its_evaluations_and_what_they_had_cost(tmp_path: Path) -> None:
    run = one(write_run(tmp_path / "a", learning(None, 0.5, None, 0.75)))
    assert [(point.round, point.step, point.accuracy) for point in run.points] == [
        (2, 10, 0.5),
        (4, 20, 0.75),
    ]
    assert [point.bytes_up for point in run.points] == [8000, 16000]
    assert [point.bytes_down for point in run.points] == [24000, 48000]
    assert [point.seconds for point in run.points] == [0.5, 1.0]
    assert [point.network_seconds for point in run.points] == [None, None]
    assert run.points[0].classes == 10
    assert run.end == run.points[-1] and run.best == 0.75
    assert run.reach(0.5) == run.points[0] and run.reach(0.51) == run.points[1] and run.reach(0.76) is None


def test_seconds_are_those_of_the_network(tmp_path: Path) -> None:
    run = one(write_run(tmp_path / "a", learning(0.5, 0.6)), NETWORK)
    assert [point.network_seconds for point in run.points] == pytest.approx([1 + 1.5, 2 * (1 + 1.5)])
    step = Network(NETWORK.link, step=2)
    assert one(tmp_path / "a", step).points[-1].network_seconds == pytest.approx(2 * (1 + 1.5 + 5 * 2))


def test_the_slowest_device_sets_the_pace(tmp_path: Path) -> None:
    up = [1000, 3000, 0, 0]
    run = one(write_run(tmp_path / "a", learning(0.5, bytes_up_each=up, bytes_down_each=0)), NETWORK)
    assert run.points[0].network_seconds == pytest.approx(3.0)


def test_the_cohort_is_the_runs_own(tmp_path: Path) -> None:
    up = [1000, 5000]
    rows = learning(0.5, 0.6, 0.7, bytes_up_each=up, bytes_down_each=0)
    folder = write_run(tmp_path / "a", rows, devices=50, cohort=2.0, seed=3)
    network = Network(NETWORK.link, spread=1.0)
    run, config = one(folder, network), Config.of({"devices": 50, "cohort": 2.0, "seed": 3})
    rounds = [network.round_seconds(cohort(config, number), up, 0, 5) for number in (1, 2, 3)]
    assert run.points[-1].network_seconds == pytest.approx(sum(rounds))
    assert len(set(rounds)) == 3


def test_a_run_that_does_not_say_who_sent_what(tmp_path: Path) -> None:
    old = learning(0.5, 0.6, bytes_up_each=None, bytes_down_each=None)
    new = one(write_run(tmp_path / "new", learning(0.5, 0.6)), NETWORK)
    assert one(write_run(tmp_path / "old", old), NETWORK).points == new.points


def test_a_run_under_way(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", learning(None, 0.5, None))
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "step"')
    run = one(folder)
    assert run.end is not None and (run.end.round, run.total) == (3, 4)
    assert [point.round for point in run.points] == [2]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = one(write_run(tmp_path / "a", []))
    assert (run.points, run.end, run.best, run.reach(0.0)) == ((), None, None, None)


def test_a_run_without_its_partition_has_no_total(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", learning(0.5))
    (folder / "partition.csv").unlink()
    assert one(folder).total is None


def test_a_loss_that_was_not_finite_is_left_out(tmp_path: Path) -> None:
    assert one(write_run(tmp_path / "a", learning(0.5, loss=None))).points[0].loss is None


# ---- folders ----


def test_folders_with_runs_in_them(tmp_path: Path) -> None:
    for path in ("out/figure/runs/b", "out/figure/runs/a", "runs/001"):
        write_run(tmp_path / path, learning(0.5))
    (tmp_path / "out/figure/runs/not-begun").mkdir()
    (tmp_path / "runs/a.toml").write_text("")
    assert [run.name for run in read([tmp_path / "out"])] == ["a", "b"]
    assert [run.name for run in read([tmp_path / "out/figure"])] == ["a", "b"]
    assert [run.name for run in read([tmp_path / "out/figure/runs", tmp_path / "runs"])] == ["a", "b", "001"]
    assert [run.name for run in read([tmp_path / "runs/001", tmp_path / "out"])] == ["001", "a", "b"]


def test_a_run_given_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a", learning(0.5))
    monkeypatch.chdir(tmp_path)
    assert len(read([Path("a"), tmp_path, Path(".")])) == 1


def test_a_run_in_the_current_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_run(tmp_path / "mine", learning(0.5)))
    assert one(Path(".")).name == "mine"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for path in ("x/001", "y/001"):
        write_run(tmp_path / path, learning(0.5))
    assert [run.name for run in read([tmp_path])] == ["x/001", "y/001"]


LINE = '{"round": 2, "step": 10, "bytes_up": 1}'
# What is written over a run's file, and what the one line says.
DAMAGED: dict[str, tuple[str, str, str]] = {
    "no toml": ("config.toml", "devices =", "config.toml: not a readable TOML file"),
    "no setting": ("config.toml", "colour = 3", "config.toml: 'colour' is unknown"),
    "no codec": ("config.toml", 'codec = "gone"', "config.toml: .*codec: 'gone'"),
    "no json": ("rounds.jsonl", "{\n", "rounds.jsonl: line 1 is damaged"),
    "no object": ("rounds.jsonl", "5\n", "rounds.jsonl: line 1 is damaged"),
    "no round": ("rounds.jsonl", "{}\n", "line 1 is damaged .it lacks 'round'"),
    "deep": ("rounds.jsonl", "[" * 100_000 + "\n", "line 1 is damaged"),
    "not text": ("rounds.jsonl", "\udcff\n", "line 1 is damaged"),
    "a round is gone": ("rounds.jsonl", LINE + "\n", "line 1 is damaged .round 2 where 1 was expected"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_run_is_one_line(case: str, tmp_path: Path) -> None:
    name, content, says = DAMAGED[case]
    folder = write_run(tmp_path / "a", learning(0.5))
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EdgewiseError, match=says) as told:
        read([tmp_path])
    assert "\n" not in str(told.value) and str(folder) in str(told.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": None}, "it lacks 'step'"),
        ({"bytes_up": "many"}, "line 2 is damaged"),
        ({"accuracy": "high"}, "line 2 is damaged"),
        ({"bytes_up_each": [1, 2, 3]}, "3 devices where 4 were asked"),
        ({"bytes_down_each": ["a", "b", "c", "d"]}, "line 2 is damaged"),
        ({"bytes_down_each": {}}, "line 2 is damaged"),
    ],
)
def test_a_damaged_line_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_run(tmp_path / "a", [row(1, 0.5), row(2, **change)])
    with pytest.raises(EdgewiseError, match=r"rounds.jsonl: line 2 is damaged \(.*\)") as told:
        read([tmp_path / "a"], NETWORK)
    assert re.search(says, str(told.value)), told.value


@pytest.mark.parametrize(
    ("path", "says"),
    [("gone", "gone: no such folder"), ("empty", r"empty: holds no run \(config.toml and rounds.jsonl\)")],
)
def test_no_runs_is_one_line(path: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "a", learning(0.5))
    with pytest.raises(EdgewiseError, match=says):
        read([tmp_path / "a", tmp_path / path])
    shutil.rmtree(tmp_path / "empty")


# ---- what tells runs apart ----


def of(*flats: dict[str, Any]) -> list[Config]:
    return [Config.of({"steps": 5, **flat}) for flat in flats]


def test_what_runs_differ_in() -> None:
    assert differences(of({}, {})) == ["", ""]
    assert differences(of({})) == [""]
    assert differences(of({"norm": "batch", "lr": 0.05}, {"lr": 0.2})) == [
        "norm batch, lr 0.05",
        "norm group, lr 0.2",
    ]
    fedavg = {"algorithm": "fedavg", "sync_every": 10}
    assert differences(of({}, fedavg)) == ["sync-sgd", "fedavg, sync every 10"]
    assert differences(of({"seed": 1, "data_dir": "a"}, {"seed": 2, "data_dir": "b"})) == ["seed 1", "seed 2"]


def test_how_a_run_is_computed_is_said_only_where_nothing_else_differs() -> None:
    assert differences(of({"fused": "off"}, {"norm": "batch"})) == ["norm group", "norm batch"]
    assert differences(of({"fused": "off"}, {"fused": "on"})) == ["fused off", "fused on"]


def test_what_has_no_flag_is_told_too() -> None:
    assert differences(of({"set": {"sgd.scalar_share": 0.25}}, {})) == ["sgd.scalar share 0.25", ""]


def test_what_runs_share() -> None:
    told = shared(of({"norm": "batch", "seed": 4}, {"norm": "layer", "seed": 4}))
    assert "digits" in told and "10 devices" in told and "seed 4" in told and "norm" not in told


def test_a_run_with_a_number_is_called_by_its_settings() -> None:
    configs = of({"seed": 1}, {"seed": 2}, {"seed": 2})
    assert labels(["001", "mine", "x/003"], configs) == ["seed 1", "mine", "seed 2"]
    assert labels(["001", "002", "003"], configs) == ["seed 1", "002", "003"]


def test_labels_have_an_end() -> None:
    many = {"lr": 0.123, "momentum": 0.456, "batch": 77, "width": 99, "devices": 55, "weight_decay": 0.25}
    assert labels(["001", "002"], of({}, many | {"seed": 3})) == ["001", "002"]
    (label,) = labels(["a" * 100 + "end"], of({}))
    assert len(label) == LONGEST and label.startswith("…") and label.endswith("aend")
