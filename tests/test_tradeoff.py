"""The page of accuracy against bytes: what is held against what, and the numbers that are shown."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise import codecs, experiments, records
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.config import Config
from edgewise.data.partition import Labels
from edgewise.experiments import Figure, Plan
from edgewise.experiments.tradeoff import Tradeoff, gather, panel_of
from edgewise.optimizers import SGD
from edgewise.rounds import run

pytestmark = pytest.mark.filterwarnings("ignore::edgewise.errors.EdgewiseWarning")
TINY = Config(devices=4, partition=Labels(2), batch=4, width=4, steps=4, eval_every=2)
SPARSE = replace(TINY, codec=codecs.parse("topk:0.01"))
RUNS = {
    "none": TINY,
    "none-seed1": replace(TINY, seed=1),
    "none-seed2": replace(TINY, seed=2),
    "sparse": SPARSE,
    "sparse-seed1": replace(SPARSE, seed=1),
    "fedavg": replace(TINY, algorithm=FedAvg(SGD(0.01), sync_every=2)),
    "fedavg-down": replace(
        SPARSE, algorithm=FedAvg(SGD(0.01), sync_every=2), codec_down=codecs.parse("int8:nofeedback")
    ),
}
FIGURE = Figure(
    title="Small and smaller",
    source="Nowhere",
    statement="nothing.",
    scales=("demo",),
    runs=lambda scale: RUNS,
    page=Tradeoff(),
)
PLAN = Plan("bytes", "demo", FIGURE, RUNS)
ACCURACIES = {
    **{"none": 0.50, "none-seed1": 0.60, "none-seed2": 0.9, "sparse": 0.49, "sparse-seed1": 0.57},
    **{"fedavg": 0.4, "fedavg-down": 0.45},
}
SENT = {
    name: 4_000 if config == TINY or "none" in name else 400 if "fed" not in name else 2_000
    for name, config in RUNS.items()
}


def summaries() -> dict[str, dict[str, float]]:
    return {name: {"bytes_up": SENT[name], "accuracy": ACCURACIES[name]} for name in RUNS}


def test_runs_that_differ_in_their_seed_alone_are_one_point() -> None:
    cells = gather(PLAN, summaries())
    assert [cell.label for cell in cells] == ["none", "topk:0.01", "none", "topk:0.01, int8 down"]
    assert [list(cell.accuracies) for cell in cells] == [[0, 1, 2], [0, 1], [0], [0]]
    assert [cell.sent for cell in cells] == [1000, 100, 500, 500]  # by one of four devices
    assert cells[0].mean == pytest.approx(2 / 3)


def test_a_loss_is_taken_seed_by_seed() -> None:
    none, sparse, *_ = gather(PLAN, summaries())
    assert sparse.loss(none) == pytest.approx([1, 3])  # not 13.7, which the third seed would make of it
    assert none.loss(sparse) == pytest.approx([-1, -3])


def test_a_panel_is_an_algorithm_and_a_partition() -> None:
    assert panel_of(TINY) == "sync-sgd, labels:2"
    assert panel_of(replace(TINY, algorithm=FedAvg(sync_every=150))) == "fedavg, K = 150, labels:2"
    assert panel_of(replace(TINY, algorithm=SyncSGD(SGD(lr=3)))) == "sync-sgd, labels:2"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figure")
    for name, config in RUNS.items():
        assert len(list(run(config, out / "runs" / name))) == 4 // config.algorithm.sync_every
    experiments.write(PLAN, out)
    return out


def test_the_table_is_that_of_the_runs(played: Path) -> None:
    page = (played / "bytes.md").read_text()
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    rows = [row for row in rows if row[0] != "codec" and not row[0].startswith("-")]
    assert [row[0] for row in rows] == ["none", "topk:0.01", "none", "topk:0.01, int8 down"]
    found = {name: records.summary(played / "runs" / name) or {} for name in RUNS}
    accuracies = [found[name]["accuracy"] for name in ("none", "none-seed1", "none-seed2")]
    low, high = 100 * min(accuracies), 100 * max(accuracies)
    assert rows[0][5] == f"{sum(accuracies) / 3:.1%} ({low:.1f} to {high:.1f})"
    saved = found["none"]["bytes_up"] / found["sparse"]["bytes_up"]
    assert rows[1][3] == rows[1][4] == f"1/{saved:,.0f}" and 60 < saved < 80
    assert rows[2][3] == "1"  # uncompressed fedavg is what fedavg is held against,
    assert rows[2][4] == f"1/{found['none']['bytes_up'] / found['fedavg']['bytes_up']:,.0f}" == "1/2"
    losses = [100 * (found[f"none{s}"]["accuracy"] - found[f"sparse{s}"]["accuracy"]) for s in ("", "-seed1")]
    assert rows[1][6].startswith(f"{sum(losses) / 2:+.1f} (")
    assert rows[0][6] == rows[2][6] == ""


def test_every_run_has_its_line(played: Path) -> None:
    with (played / "bytes.csv").open(newline="") as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert lines.keys() == RUNS.keys()
    for name, line in lines.items():
        summary = records.summary(played / "runs" / name) or {}
        assert float(line["accuracy"]) == summary["accuracy"]
        assert int(line["bytes_up"]) == summary["bytes_up"]
        assert line["codec"] == codecs.text(RUNS[name].codec) and line["seed"] == str(RUNS[name].seed)


def test_the_picture_is_one(played: Path) -> None:
    assert (played / "bytes.png").read_bytes().startswith(b"\x89PNG")
