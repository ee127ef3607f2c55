"""The page of methods by K and split: what is held against what, and the numbers that are shown."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgewise import data, experiments, records
from edgewise.algorithms import FedAvg
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.data.partition import Iid, Labels
from edgewise.errors import EdgewiseError
from edgewise.experiments import Figure, Plan, screen
from edgewise.experiments.drift import METHODS, PAIRINGS, cell
from edgewise.experiments.methods import Cell, Methods, difference
from edgewise.optimizers import SGD

TINY = Config(devices=4, width=4, batch=4, steps=4, algorithm=FedAvg(SGD(0.01), sync_every=2))
SPLITS = {"disjoint": Labels(2), "iid": Iid()}
RUNS = {
    f"{method}-2-{pairing}-seed{seed}": replace(TINY, partition=split, seed=seed)
    for method in ("fedavg", "steady")
    for pairing, split in SPLITS.items()
    for seed in range(2)
}
PAGE = Methods(
    cell=cell,
    plain="fedavg",
    every=lambda scale: 2,
    shown=(("fedavg", "iid", "even"), ("steady", "disjoint", "uneven"), ("none", "iid", "not run")),
)
FIGURE = Figure("Who forgets", "Nowhere", "nothing.", ("demo",), lambda scale: RUNS, PAGE)
PLAN = Plan("gap", "demo", FIGURE, RUNS)
ACCURACIES = {
    **{"fedavg-2-disjoint-seed0": 0.20, "fedavg-2-disjoint-seed1": 0.30},
    **{"fedavg-2-iid-seed0": 0.50, "fedavg-2-iid-seed1": 0.60},
    **{"steady-2-disjoint-seed0": 0.51, "steady-2-disjoint-seed1": 0.63},
    **{"steady-2-iid-seed0": 0.55, "steady-2-iid-seed1": 0.65},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of runs that ended with ACCURACIES."""
    out = tmp_path_factory.mktemp("figure")
    for name, accuracy in ACCURACIES.items():
        folder = out / "runs" / name
        folder.mkdir(parents=True)
        rows = [{"round": r, "step": 2 * r, "accuracy": accuracy * r / 2} for r in (1, 2)]
        records.write(folder / records.ROUNDS, "".join(json.dumps(row) + "\n" for row in rows))
        ended = {"accuracy": accuracy, "last10_accuracy": accuracy / 2, "best_accuracy": accuracy + 0.1}
        ended |= {"bytes_up": 8_000, "bytes_down": 9_000, "steps": 4, "rounds": 2, "seconds": 1.0}
        ended |= {"per_class": [], "examples_seen": 64, "model_digest": ""}
        records.write(folder / records.SUMMARY, json.dumps(ended))
    experiments.write(PLAN, out)
    return out


def table(page: str) -> dict[tuple[str, str], list[str]]:
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    return {(row[0], row[1]): row[2:] for row in rows if row[0] in ("fedavg", "steady")}


def test_runs_that_differ_in_their_seed_alone_are_one_row(written: Path) -> None:
    rows = table((written / "gap.md").read_text())
    assert list(rows) == [(m, p) for m in ("fedavg", "steady") for p in ("disjoint", "iid")]
    seeds, accuracy, last, best, sent, plain, own = rows["steady", "disjoint"]
    assert (seeds, accuracy) == ("2", "57.0% (51.0% to 63.0%)")
    assert last.startswith("28.5% (") and best.startswith("67.0% (") and sent == "2.00 kB"
    # +1 and +3 points: 2 in the mean, 1.41 apart, over sqrt(2), times 12.706.
    assert plain == "+2.0 (-10.7 to +14.7)"
    assert own == "-3.0 (-15.7 to +9.7)"
    assert rows["fedavg", "iid"][-2:] == ["", ""]
    assert rows["fedavg", "disjoint"][-2:] == ["-30.0 (-30.0 to -30.0)"] * 2


def test_a_difference_is_taken_seed_by_seed() -> None:
    def of(*accuracies: float | None) -> dict[int, dict[str, Any]]:
        return {seed: {"accuracy": a} for seed, a in enumerate(accuracies) if a is not None}

    assert difference(of(0.5), of(0.4)) == "+10.0"
    assert difference(of(0.5, 0.9), of(0.4)) == "+10.0"
    assert difference(of(None, 0.9), of(0.4)) == difference(of(0.5), {}) == ""
    three = difference(of(0.5, 0.6, 0.7), of(0.5, 0.5, 0.5))
    half = 4.303 * 10 / math.sqrt(3)
    assert three == f"+10.0 ({10 - half:+.1f} to {10 + half:+.1f})"


def test_every_run_has_its_line_and_the_picture_is_one(written: Path) -> None:
    with (written / "gap.csv").open(newline="") as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert lines.keys() == RUNS.keys()
    for name, line in lines.items():
        assert (line["method"], line["pairing"]) == (cell(name).method, cell(name).pairing)
        assert line["sync_every"] == "2" and float(line["accuracy"]) == ACCURACIES[name]
    assert (written / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_is_the_mean_of_its_seeds(written: Path) -> None:
    curve = PAGE._curve(PLAN, written / "runs", "fedavg", "iid", "even")
    assert curve is not None
    assert list(curve.steps) == [2, 4] and list(curve.accuracies) == pytest.approx([0.275, 0.55])
    assert PAGE._curve(PLAN, written / "runs", "none", "iid", "not run") is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_run_says_in_its_name_what_it_is(method: str, pairing: str) -> None:
    assert cell(f"{method}-150-{pairing}-seed2") == Cell(method, 150, pairing)


@pytest.mark.parametrize("name", ["data", "held_back"])
def test_the_screen_takes_a_folder_for_its_images(name: str, tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=re.escape(str(tmp_path))):
        data.load(f"edgewise.experiments.screen:{name}", tmp_path)


def test_what_is_held_back_is_no_part_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(6_000 * 4).view(6_000, 1, 2, 2) % 251  # every image another one
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(6_000) // 250, torch.arange(6_000) % 250
    labels = torch.arange(6_000) % 10
    tested = (images[:20].to(torch.uint8), labels[:20])
    whole = Dataset.of("some", train=(images.to(torch.uint8), labels), test=tested, augment="flip")
    monkeypatch.setattr(screen.cifar10, "load", lambda folder: whole)
    found = screen.held_back()
    codes = [
        250 * split.images[:, 0, 0, 0].int() + split.images[:, 0, 0, 1] for split in (found.train, found.test)
    ]
    assert [len(code) for code in codes] == [1_000, 5_000]
    assert sorted(torch.cat(codes).tolist()) == list(range(6_000))
    assert all(
        torch.equal(split.labels, code % 10)
        for split, code in zip((found.train, found.test), codes, strict=True)
    )
    halves = screen.data()  # the same images, smaller
    assert torch.equal(halves.train.labels, found.train.labels) and halves.shape == (1, 1, 1)
