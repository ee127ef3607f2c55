"""The benchmark compares like with like: the same work on both sides, in turns, reported with an interval."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgewise import Config
from edgewise.algorithms import ALGORITHMS
from edgewise.data import Dataset

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import algorithms  # noqa: E402 - scripts, not modules of the package
import anatomy  # noqa: E402
import norms  # noqa: E402
import peak  # noqa: E402
import peers  # noqa: E402
import scale  # noqa: E402
import simulate  # noqa: E402
import small  # noqa: E402

# `ranks` is a module of the tests.
SPEC = importlib.util.spec_from_file_location("benchmark_ranks", BENCHMARKS / "ranks.py")
assert SPEC is not None and SPEC.loader is not None
side_by_side = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = side_by_side  # where its dataclasses look for it
SPEC.loader.exec_module(side_by_side)

CASES = {case.name: case for case in simulate.CASES}
SAME = [case.name for case in simulate.CASES if not case.differs]


@pytest.fixture
def setup() -> simulate.Setup:
    """Noise of the digits' shape: 3 devices, 4 examples each a step, a model of width 2."""
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    labels = torch.randint(0, 5, (60,))
    dataset = Dataset.of("noise", train=(images, labels), test=(images[:5], labels[:5]), classes="abcde")
    return simulate.Setup(dataset, width=2, devices=3, batch=4)


@pytest.mark.parametrize("name", SAME)
def test_both_sides_do_the_same_work(name: str, setup: simulate.Setup) -> None:
    assert simulate.check(CASES[name], setup)


@pytest.mark.parametrize("name", SAME)
def test_other_work_is_noticed(
    name: str, setup: simulate.Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "MOMENTUM", 0.9001)  # of the bare loop; edgewise has its own by now
    assert not simulate.check(CASES[name], setup)
    assert f"{name}: DIFFERENT WORK" in capsys.readouterr().out


def test_only_batch_norm_by_device_differs() -> None:
    assert [case.name for case in simulate.CASES if case.differs] == ["batch"]


def test_the_bare_crop_and_flip_moves_whole_images() -> None:
    """Every image of one colour a column or row keeps its columns and rows together."""
    image = torch.arange(64, dtype=torch.uint8).add(1).view(1, 1, 8, 8)
    padded = torch.nn.functional.pad(image, (simulate.PADDING,) * 4)[0, 0]
    crops = padded.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 8, 8)
    legal = {tuple(crop.flatten().tolist()) for both in (crops, crops.flip(2)) for crop in both}
    made = simulate.crop_and_flip(image.expand(500, 3, 8, 8))
    assert torch.equal(made[:, 0], made[:, 2])
    seen = {tuple(one.flatten().tolist()) for one in made[:, 0]}
    assert seen <= legal
    assert len(seen) > 100  # of 2 * 9 * 9


def test_sides_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = simulate.alternate(sides, 3)
    assert "".join(calls) == "abccbaabc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_the_median_of_pairs_with_its_interval() -> None:
    assert simulate.ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])[0] == 3.0
    assert simulate.ratio([3.0, 6.0, 9.0], [2.0, 4.0, 6.0]) == (1.5, 1.5, 1.5)
    noisy = np.random.default_rng(1).normal(1.0, 0.1, 100)
    middle, low, high = simulate.ratio(noisy.tolist(), [1.0] * 100)
    assert 0.9 < low < middle < high < 1.1
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 * 0.1 / 10, rel=0.6)  # of a normal's median


def play(arguments: list[str], setup: simulate.Setup, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(simulate, "load", lambda: setup.dataset)
    return simulate.main([*arguments, "--width", "2", "--devices", "3", "--batch", "4", "--rounds", "2"])


def test_it_prints_a_line_a_case_and_writes_json(
    setup: simulate.Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "ratios.json"
    assert play(["--json", str(file)], setup, monkeypatch) == 0
    about, *lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}, threads: 1; noise, width 2, 3 devices x 4, 2 rounds" in about
    assert [line.partition(":")[0] for line in lines] == list(CASES)
    for line in lines:
        assert " of bare" in line and " of bare-cl" in line and line.count("(the faster)") == 1
        assert ("the work differs" in line) == line.startswith("batch:")
    content = json.loads(file.read_text())
    assert content["about"] == about
    assert list(content["cases"]) == list(CASES)
    case = content["cases"]["fedavg"]
    assert {side: len(times) for side, times in case["seconds"].items()} == {
        "edgewise": 2,
        "bare": 2,
        "bare-cl": 2,
    }
    assert all(low <= middle <= high for middle, low, high in case["ratios"].values())


def test_check_times_nothing(
    setup: simulate.Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "measure", None)
    assert play(["--check", "--cases", "group", "batch"], setup, monkeypatch) == 0
    assert "group: the same work" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--width", "--devices", "--batch", "--rounds"])
def test_zero_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        simulate.main([option, "0"])
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("where", [None, "."])
def test_the_data_is_cifar10_or_noise_of_its_shape(
    where: str | None, setup: simulate.Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEWISE_DATA", raising=False)
    if where:
        monkeypatch.setenv("EDGEWISE_DATA", where)
        monkeypatch.setattr(simulate.data, "load", lambda name: {"cifar10": setup.dataset}[name])
    dataset = simulate.load()
    assert dataset.shape == ((1, 8, 8) if where else (3, 32, 32))
    assert len(dataset.train) == (60 if where else 50_000)
    assert len(dataset.test) <= 10


def test_every_algorithm_has_its_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """At a tiny size; on noise, and each device lacks classes, so that distillation has something to do."""
    assert set(algorithms.NAMES) >= ALGORITHMS.keys() - {"sync-sgd"}
    small = ["--width", "2", "--batch", "2", "--rounds", "1", "--steps", "1"]
    assert algorithms.main([*small, "--cases", "scaffold", "fedlmd", "sam"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["scaffold", "fedlmd", "sam"]
    assert "asked: 1.15" in lines[0] and "asked: 1.5" in lines[1] and "asked" not in lines[2]


TINY = ["--cases", "lenet", "--devices", "2", "--batch", "2", "--steps", "1", "--rounds", "2", "--turns", "1"]


@pytest.mark.slow
def test_two_processes_do_the_same_work_as_two_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert side_by_side.main([*TINY, "--check"]) == 0
    assert "lenet: the same work: no weight differs" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_are_timed_beside_two_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert side_by_side.main([*TINY, "--json", str(tmp_path / "ranks.json")]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [f"lenet {side}" for side in side_by_side.SIDES]
    case = json.loads((tmp_path / "ranks.json").read_text())["cases"]["lenet"]
    assert all(len(run["rounds"]) == 1 and run["cpu"] > 0 for runs in case["runs"].values() for run in runs)


def test_runs_are_compared_with_the_bare_one_beside_them() -> None:
    def played(first: float, seconds: list[float], cpu: float) -> Any:
        return side_by_side.Played(first, seconds, cpu)

    bare = [played(2.0, [1.0, 1.0, 9.0], 10.0), played(4.0, [2.0, 2.0, 2.0], 10.0)]
    ours = [played(3.0, [1.1, 1.1, 1.1], 9.0), played(5.5, [2.0, 2.0, 20.0], 12.0)]
    found = side_by_side.summary({"edgewise": ours, "bare": bare})
    assert found["edgewise"]["of bare"] == pytest.approx(1.05) and found["bare"]["of bare"] == 1.0
    assert found["edgewise"]["cpu of bare"] == pytest.approx(1.05)
    assert found["edgewise"]["later first"] == pytest.approx(1.25)
    assert "cpu of bare" not in side_by_side.summary({"edgewise": ours})["edgewise"]


def test_many_small_devices_do_the_same_work_as_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert small.main(["--check", "--devices", "12", "--cohort", "5", "--cases", "linear", "perceptron"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split(": no weight")[0] for line in lines] == [
        "linear: the same work",
        "perceptron: the same work",
    ]


def test_the_check_of_small_devices_notices_other_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = small.config
    monkeypatch.setattr(small, "config", lambda *given: replace(plain(*given), seed=1))
    assert small.main(["--check", "--devices", "12", "--cohort", "5", "--cases", "linear"]) == 1
    assert "DIFFERENT WORK" in capsys.readouterr().out


def test_many_small_devices_have_their_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--devices", "12", "--cohort", "5", "--cases", "linear", "--rounds", "2"]
    assert small.main([*flags, "--json", str(tmp_path / "small.json")]) == 0
    case = json.loads((tmp_path / "small.json").read_text())["cases"]["linear"]
    assert case["ratios"].keys() == small.SIDES.keys()
    assert all(len(took) == 2 and min(took) > 0 for took in case["seconds"].values())
    assert "edgewise " in capsys.readouterr().out


def test_very_many_devices_have_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--devices", "8", "20", "--cohort", "6", "--rounds", "2"]
    assert scale.main([*flags, "--json", str(tmp_path / "scale.json")]) == 0
    found = json.loads((tmp_path / "scale.json").read_text())["devices"]
    assert list(found) == ["8", "20"]
    for numbers in found.values():
        assert 0 < numbers["beside_ms"] < numbers["round_ms"] and numbers["start_s"] > 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["8", "20"]


def test_a_peer_is_compared_with_the_loop_of_its_turn(capsys: pytest.CaptureFixture[str]) -> None:
    def turn(median: float, cpu: float, first: float) -> dict[str, float]:
        return {"median": median, "cpu": cpu, "first": first}

    found: Any = {
        "bare": [turn(1, 10, 2), None, turn(2, 10, 2), turn(4, 10, 2), turn(9, 9, 9)],
        "pfl": [turn(2, 20, 3), turn(9, 9, 9), turn(2, 30, 4), turn(2, 40, 5), None],
        "flower": [None] * 5,
    }
    ratios = peers.compare("linear", found)
    assert ratios == {"pfl": {"of_bare": 1, "cpu_of_bare": 3, "later_first": 2}}
    assert capsys.readouterr().out.startswith("linear pfl: 2000 ms a round, of bare 1.00")


@pytest.mark.slow
def test_peers_that_are_not_installed_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "MODULES", peers.MODULES | {"pfl": "not_installed_anywhere"})
    flags = ["--cases", "linear", "--sides", "edgewise", "pfl", "--rounds", "1", "--turns", "1"]
    assert peers.main([*flags, "--json", str(tmp_path / "peers.json")]) == 0
    case = json.loads((tmp_path / "peers.json").read_text())["cases"]["linear"]
    assert case["ratios"].keys() == {"edgewise"} and case["runs"].keys() == {"bare", "edgewise"}
    assert "pfl: skipped: not_installed_anywhere is not installed" in capsys.readouterr().out


def test_a_run_s_time_is_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["width=2", "batch=2", "devices=2", "sync_every=2", "algorithm=fedprox"]
    assert anatomy.main(["--seconds", "0.5", "--set", *flags]) == 0
    about, rounds, *lines = capsys.readouterr().out.splitlines()
    assert "algorithm=fedprox" in about and " rounds of " in rounds
    shares = {words[1]: float(words[0][:-1]) for words in map(str.split, lines) if words[1].endswith(".py")}
    assert shares["local.py"] > 30 and sum(shares.values()) == pytest.approx(100, abs=2)


def test_a_model_s_operations_are_counted_by_hand() -> None:
    one, two = (Config(devices=2, width=width) for width in (2, 4))
    # Doubling the width takes four times the products, but for the first convolution and the last layer.
    assert 3.0 < peak.operations(two) / peak.operations(one) < 4.0
    last = 3 * 2 * 16 * 10  # forward and twice backward; a product is two operations
    first = 3 * 2 * (8 * 8) * (1 * 9) * 2
    inner = 4 * (peak.operations(one) - first - last)
    assert peak.operations(two) == inner + 2 * (first + last)


def test_a_share_of_the_peak_is_what_its_parts_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert peak.main(["--scale", "demo", "--seconds", "0.2"]) == 0
    about, rate, share, whole = capsys.readouterr().out.splitlines()
    assert "table1 group-128, demo scale, fp32" in about
    images, done = float(rate.split()[0].replace(",", "")), float(rate.split()[-2])
    percent, best = re.findall(r"[\d.]+", share)[:2]
    assert float(percent) == pytest.approx(100 * done / float(best), abs=2)
    assert float(whole.split()[-2].replace(",", "")) == pytest.approx(20 * 1438 / images, abs=0.6)


def test_a_rate_leaves_out_the_rounds_that_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def rounds(config: Config, folder: str, checkpoint_seconds: float) -> Iterator[Any]:
        for number in range(1, 100):
            clock[0] += 50 if number <= peak.WARM else 2
            yield SimpleNamespace(examples_seen=100 * number)

    monkeypatch.setattr(peak, "run", rounds)
    monkeypatch.setattr(peak, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert peak.rate(Config(), 5) == (50.0, 3)


def test_the_best_product_is_the_fastest_of_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_lasts", lambda work, place, seconds: {512: 1.0, 1024: 2.0}[len(work())])
    found = peak.fastest(torch.device("cpu"), torch.bfloat16)
    assert found == max(2 * 512**3 / 1.0, 2 * 1024**3 / 2.0)
    monkeypatch.setattr(peak, "_lasts", lambda work, *others: 1.0 if work().dtype == torch.bfloat16 else 0.1)
    assert peak.fastest(torch.device("cpu"), torch.bfloat16) == 2 * 1024**3


def test_the_peak_is_taken_on_as_many_threads_as_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(peak, "fastest", lambda *_: found.append(torch.get_num_threads()) or 1e12)
    monkeypatch.setattr(peak, "rate", lambda *_: (1.0, 1))
    torch.set_num_threads(2)
    try:
        assert peak.main(["--scale", "demo"]) == 0
    finally:
        torch.set_num_threads(1)
    assert found == [1]


def test_norms_are_measured_by_layer_and_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba")
    norms.layers(4, 2, 1)
    norms.steps(4, 2, 1)
    lines = capsys.readouterr().out.splitlines()
    shapes = ("4 x 32 x 32", "8 x 16 x 16", "16 x 8 x 8", "32 x 4 x 4")
    assert [line.split(":")[0] for line in lines] == [
        *(f"{precision} {shape}" for precision in norms.TYPES for shape in shapes),
        *["a step"] * 3,
    ]
    assert all(re.search(r"(compiled|bf16) [0-9.]+ \[[0-9.]+, [0-9.]+\]$", line) for line in lines)
