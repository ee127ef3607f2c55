"""The reference's figures and table: its numbers in the plans, its words on the pages, every run once."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from command import edgewise

from edgewise import experiments, records
from edgewise.config import Config, read_toml
from edgewise.errors import EdgewiseError
from edgewise.experiments import FIGURES, REFERENCE, Figure, Plan, large_batch
from edgewise.experiments.claims import ABOVE, MATCHES, SHORT, SILENT, Claim, Outcome
from edgewise.experiments.matrix import Group, Matrix
from edgewise.experiments.page import Curves, subtitle
from edgewise.models.norms import Batch

LARGE = ("figure3", "figure4", "table1")

# ---- what is planned ----


def flats(name: str, scale: str) -> dict[str, dict[str, object]]:
    return {run: config.flat() for run, config in experiments.plan(name, scale).runs.items()}


def test_the_reference_is_planned_at_every_scale() -> None:
    for name in REFERENCE:
        assert FIGURES[name].scales == ("demo", "laptop", "paper")
        assert "the reference" not in FIGURES[name].statement  # its words, of which the page says whose


def test_large_batches_are_the_references() -> None:
    runs = flats("table1", "paper")
    for name, flat in runs.items():
        assert (flat["data"], flat["width"], flat["epochs"], flat["devices"]) == ("cifar10", 64, 100, 10)
        assert (flat["partition"], flat["algorithm"]) == ("labels:2", "sync-sgd")
        assert (flat["momentum"], flat["weight_decay"]) == (0.9, 5e-4)
        assert flat["batch"] == {"128": 13, "1k": 102, "2k": 205, "4k": 410, "8k": 819}[name.split("-")[-1]]
    post = {name: flat for name, flat in runs.items() if not name.startswith("ours")}
    assert len(post) == 16
    assert {flat["schedule"] for flat in post.values()} == {"plateau"} and not any(
        flat["nesterov"] or flat["augment"] != "auto" for flat in post.values()
    )
    for norm in ("group", "layer", "instance"):
        assert {runs[f"{norm}-{batch}"]["norm"] for batch in ("128", "1k", "2k")} == {norm}
    for name, flat in post.items():
        warmup = (flat["lr"], flat["warmup_lr"], flat["warmup_epochs"])
        if name.endswith("-128"):
            assert warmup == (0.1, None, 0), name
        elif name.startswith(("fixup-linear", "group-1", "group-2", "layer", "instance")):
            assert warmup == ({"1k": 0.8, "2k": 1.6}[name[-2:]], 0.1, 6), name
        else:
            assert warmup == (0.1, 0.01, 20), name
        assert (flat["model"] == "fixup-resnet18") == name.startswith("fixup"), name


def test_the_results_are_of_these_runs() -> None:
    """What is committed was played with the settings that would be played now."""
    played = Path(__file__).parent.parent / "results" / "reference" / "runs"
    planned = flats("table1", "laptop") | flats("figure5", "laptop")
    assert {folder.name for folder in played.iterdir()} == planned.keys()
    for name, flat in planned.items():
        found = Config.of(read_toml(played / name / records.CONFIG)).flat()
        for setting in (
            "lr",
            "lr_scale",
            "warmup_epochs",
            "schedule",
            "batch",
            "epochs",
            "steps",
            "norm",
            "model",
        ):
            assert flat[setting] is None or found[setting] == flat[setting], (name, setting)


def test_pages_say_how_a_rate_was_chosen_and_what_precision_it_is() -> None:
    laptop, paper = (experiments.plan("table1", scale) for scale in ("laptop", "paper"))
    assert "(batch / 128)^0.25: both chosen at 128 and 2k, on training images" in large_batch.notes(laptop)
    assert "(batch / 128)^0.5: not tuned." in large_batch.notes(paper)
    assert "width 64 in bf16, " in subtitle(paper) and "width 8, " in subtitle(laptop)


def test_ours_is_one_mapping_of_flags() -> None:
    for name, flat in flats("table1", "laptop").items():
        ours = all(flat[flag] == value for flag, value in large_batch.OURS.items())
        assert ours == name.startswith("ours-"), name


@pytest.mark.parametrize("scale", ["demo", "laptop"])
def test_a_short_run_has_the_shape_of_the_long_one(scale: str) -> None:
    short, long = flats("table1", scale), flats("table1", "paper")
    for name, flat in short.items():
        share = flat["epochs"] / long[name]["epochs"]  # type: ignore[operator]
        assert flat["warmup_epochs"] == pytest.approx(share * long[name]["warmup_epochs"])  # type: ignore[operator]
        for setting in ("lr", "warmup_lr", "momentum", "model", "norm", "partition"):
            assert flat[setting] == long[name][setting], (name, setting)
        grown, growth = 1.0, large_batch.SCALES[scale].growth  # the rate, with the batch
        if name.startswith("ours-"):
            grown = (large_batch.BATCHES[name.rpartition("-")[2]] / 128) ** growth
        assert flat["lr_scale"] == pytest.approx(grown)  # type: ignore[operator]
    sizes = [flat["batch"] for flat in (short[f"ours-fixup-{batch}"] for batch in large_batch.BATCHES)]
    assert [size / sizes[0] for size in sizes] == pytest.approx([1, 8, 16, 32, 64], rel=0.05)  # type: ignore[operator]
    assert max(sizes) * 10 <= large_batch.SCALES[scale].examples  # type: ignore[operator]


def test_federated_averaging_is_the_references() -> None:
    runs = flats("figure5", "paper")
    assert list(runs) == ["skewed-10", "skewed-150", "iid-10", "iid-150"]
    for name, flat in runs.items():
        partition, every = name.split("-")
        assert flat["partition"] == {"skewed": "labels:2", "iid": "iid"}[partition]
        assert flat["sync_every"] == int(every)
        assert (flat["norm"], flat["batch"], flat["devices"], flat["algorithm"]) == (
            "group",
            32,
            10,
            "fedavg",
        )
        assert (flat["lr"], flat["momentum"], flat["weight_decay"]) == (0.1, 0.9, 5e-4)


def test_laptop_scale_fits_ninety_minutes_of_two_cores() -> None:
    """At 700 images a second and core in training, 2,500 in evaluation; figure2 has its own hour."""
    seconds = 0.0
    for name in ("table1", "figure5"):
        for config in experiments.plan(name, "laptop").runs.values():
            steps = config.steps or round((config.epochs or 0) * 50_000 / (10 * config.batch))
            rounds = steps / config.algorithm.sync_every
            seconds += steps * config.batch * 10 / 700 + rounds / (config.eval_every or 1) * 10_000 / 2500
    assert 45 * 60 < seconds / 2 < 80 * 60


@pytest.mark.parametrize("scale", ["demo", "laptop", "paper"])
def test_what_figures_share_is_the_same_run(scale: str) -> None:
    figure3, figure4, table1 = (experiments.plan(n, scale, seed=5).runs for n in LARGE)
    assert {FIGURES[name].family for name in LARGE} == {"large-batch"}
    assert figure3.keys() & figure4.keys() == set()
    assert {**figure3, **figure4}.items() <= table1.items()


def test_pages_say_something_of_every_run() -> None:
    for name in REFERENCE:
        page = FIGURES[name].page
        assert isinstance(page, Curves | Matrix)
        runs = {run for run in experiments.plan(name, "demo").runs if not run.startswith("ours-")}
        assert set(page.expected) == runs and set(page.labels) >= runs
        panels = [run for panel in getattr(page, "panels", ()) for run in panel]
        assert not panels or sorted(panels) == sorted(runs)
        assert all(claim.of is None or claim.of in runs for claim in page.expected.values())


# ---- what the reference says beside what was measured ----


def ended(accuracy: float | None) -> Outcome:
    return Outcome(accuracy, accuracy, accuracy, 1, 1.0)


@pytest.mark.parametrize(
    ("claim", "accuracy", "word", "rule"),
    [
        (Claim("not shown"), 0.9, SILENT, ""),
        (Claim("nearly 50 %", 0.45, 0.55), 0.5, MATCHES, "45% to 55%"),
        (Claim("nearly 50 %", 0.45, 0.55), 0.44, SHORT, "45% to 55%"),
        (Claim("nearly 50 %", 0.45, 0.55), 0.56, ABOVE, "45% to 55%"),
        (Claim("random", high=0.15), 0.15, MATCHES, "at most 15%"),
        (Claim("random", high=0.15), 0.16, ABOVE, "at most 15%"),
        (Claim("explodes", high=0.15), None, MATCHES, "at most 15%"),
        (Claim("lower", high=-0.005, of="b"), 0.595, MATCHES, "at most -0.5 points from B"),
        (Claim("lower", high=-0.005, of="b"), 0.596, ABOVE, "at most -0.5 points from B"),
        (Claim("level", -0.02, 0.02, of="b"), 0.58, MATCHES, "-2 to +2 points from B"),
        (Claim("level", -0.02, 0.02, of="b"), 0.62, MATCHES, "-2 to +2 points from B"),
        (Claim("level", -0.02, 0.02, of="b"), None, SHORT, "-2 to +2 points from B"),
        (Claim("good", low=0.9), 0.91, MATCHES, "at least 90%"),
        (Claim("good", low=0.9), 0.89, SHORT, "at least 90%"),
    ],
)
def test_a_word(claim: Claim, accuracy: float | None, word: str, rule: str) -> None:
    assert claim.verdict(ended(accuracy), {"b": ended(0.6)}) == word
    assert claim.rule({"b": "B"}) == rule


def test_nothing_is_held_against_a_run_that_diverged() -> None:
    assert Claim("lower", high=-0.005, of="b").verdict(ended(0.5), {"b": ended(None)}) == SILENT


# ---- a family of two, played ----

TINY = Config(devices=4, batch=8, width=4, steps=2, eval_every=1)
STEEP = Config.of({**TINY.flat(), "lr": 1e6, "steps": 20, "eval_every": 0})
RUNS = {"a-128": TINY, "a-1k": replace(TINY, batch=16), "b-128": replace(TINY, norm=Batch()), "b-1k": STEEP}
LABELS = {"a-128": "A, 128", "a-1k": "A, 1k", "b-128": "B, 128", "b-1k": "B, 1k"}
CURVES = Figure(
    title="Curves",
    source="Figure 7",
    statement="nothing in particular.",
    scales=("demo",),
    runs=lambda scale: {name: RUNS[name] for name in ("b-128", "b-1k")},
    page=Curves(
        labels={name: LABELS[name] for name in ("b-128", "b-1k")},
        expected={"b-128": Claim("the level"), "b-1k": Claim("explodes", high=0.15)},
        epochs=True,
        panels=(("b-128",), ("b-1k",)),
    ),
    family="both",
    diverging=True,
)
TABLE = replace(
    CURVES,
    title="A table",
    runs=lambda scale: RUNS,
    page=Matrix(
        groups=(
            Group("first", {"a": "A", "b": "B"}, ("128",)),
            Group("second", {"b": "B", "c": "C"}, ("1k", "2k")),
        ),
        labels=LABELS,
        expected={"b-1k": Claim("explodes", high=0.15)},
        notes=lambda plan: f"A note on {len(plan.runs)} runs.",
    ),
)
PLANS = [
    Plan(name, "demo", figure, figure.runs("demo")) for name, figure in (("seven", CURVES), ("one", TABLE))
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family")
    assert len(list(experiments.reproduce_all(PLANS, out, jobs=2))) == 2
    return out


def test_a_family_plays_what_it_shares_once(played: Path) -> None:
    assert sorted(path.name for path in played.iterdir()) == ["both", "one", "seven"]
    assert sorted(path.name for path in (played / "both" / "runs").iterdir() if path.is_dir()) == sorted(RUNS)
    for name in ("seven", "one"):
        made = sorted(path.name for path in (played / name).iterdir())
        assert made == [f"{name}.csv", f"{name}.md", f"{name}.png"]
    # Once: the log of a run has what it printed at its end.
    assert (played / "both" / "runs" / "b-128.log").read_text().count('"accuracy"') == 1


def test_a_run_that_diverged_is_a_result(played: Path) -> None:
    folder = played / "both" / "runs" / "b-1k"
    steps = len(records.rows(folder))
    assert records.summary(folder) is None and "diverged" in (folder / records.DIVERGED).read_text()
    assert Outcome.read(folder).accuracy is None and 0 < steps < 20
    page = (played / "seven" / "seven.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| B, 1k |"))
    assert f"| diverged after {steps} steps |" in row and "| matches |" in row


def test_a_family_that_was_played_is_only_written_again(played: Path) -> None:
    before = {path: path.read_bytes() for path in (played / "both" / "runs").rglob("*") if path.is_file()}
    pages = list(experiments.reproduce_all(PLANS, played, resume=True))
    assert pages == [(played / name / f"{name}.md").read_text() for name in ("seven", "one")]
    after = {path: path.read_bytes() for path in (played / "both" / "runs").rglob("*") if path.is_file()}
    assert after == before
    with pytest.raises(EdgewiseError, match="holds a run already; give --resume, or another --out"):
        next(experiments.reproduce_all(PLANS, played))
    other = [replace(plan, runs={n: replace(c, seed=1) for n, c in plan.runs.items()}) for plan in PLANS]
    with pytest.raises(EdgewiseError, match=r"seed: the run in .*b-128 has 0, not 1"):
        next(experiments.reproduce_all(other, played, resume=True))


def test_where_divergence_is_no_result_it_stops_the_figure(tmp_path: Path) -> None:
    plan = replace(PLANS[0], figure=replace(CURVES, diverging=False), runs={"b-1k": STEEP})
    with pytest.raises(EdgewiseError, match=r"^run b-1k stopped with status 2: .*training diverged"):
        experiments.play(plan, tmp_path)


def test_a_table_has_its_cells(played: Path) -> None:
    page = (played / "one" / "one.md").read_text()
    numbers = {n: records.summary(played / "both" / "runs" / n) or {} for n in RUNS}
    a, b = (f"{numbers[name]['accuracy']:.1%}" for name in ("a-128", "b-128"))
    head, _, *rows = [line for line in page.splitlines() if line.startswith("|")][:4]
    assert head == "| | first: 128 | second: 1k | second: 2k |"
    assert rows == [f"| A | {a} |  |  |", f"| B | {b} | diverged |  |"]
    assert "A note on 4 runs." in page and "Command: `edgewise reproduce one --scale demo`" in page


def test_a_table_has_its_numbers(played: Path) -> None:
    with (played / "one" / "one.csv").open(newline="") as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["a-128", "b-128", "b-1k"]
    assert lines["a-128"]["images_a_step"] == "32" and lines["a-128"]["recipe"] == "first"
    found = records.summary(played / "both" / "runs" / "a-128") or {}
    assert float(lines["a-128"]["accuracy"]) == found["accuracy"] and lines["a-128"]["diverged"] == "0"
    assert (lines["b-1k"]["accuracy"], lines["b-1k"]["diverged"]) == ("", "1")


def test_curves_of_runs_with_other_batches_are_over_epochs(played: Path) -> None:
    with (played / "seven" / "seven.csv").open(newline="") as file:
        seen = [int(line["examples_seen"]) for line in csv.DictReader(file) if line["run"] == "b-128"]
    assert seen == [32, 64]
    for name in ("seven", "one"):
        assert (played / name / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    tall, flat = ((played / name / f"{name}.png").read_bytes()[20:24] for name in ("seven", "one"))
    assert int.from_bytes(tall, "big") > 1.5 * int.from_bytes(flat, "big")  # two panels


@pytest.mark.parametrize("figure", ["all", "figure3", "table1"])
def test_a_scale_that_is_unknown_is_one_line(figure: str, tmp_path: Path) -> None:
    error = edgewise("reproduce", figure, "--scale", "huge", folder=tmp_path).error
    assert error.endswith("--scale: 'huge' is unknown; one of: demo, laptop, paper")
    assert list(tmp_path.iterdir()) == []
