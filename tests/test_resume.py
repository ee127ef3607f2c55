"""A run that is stopped anywhere, in any way, goes on to the same model, bit for bit."""

import json
import math
import random
import shutil
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import Done, Running, edgewise, start, until

from edgewise import data, records
from edgewise.aggregators import Median, TrimmedMean
from edgewise.algorithms import FedAvg, SyncSGD
from edgewise.codecs import RandomK, parse
from edgewise.config import Config
from edgewise.data import Dataset, Split
from edgewise.data.batches import Augment
from edgewise.data.partition import Labels
from edgewise.diagnosis import Full
from edgewise.errors import EdgewiseError
from edgewise.models.norms import Batch, BatchFrozen, BatchLocal
from edgewise.optimizers import SGD
from edgewise.reconcile import overlay, reconcile
from edgewise.records import Checkpoint
from edgewise.rounds import run
from edgewise.schedules import Cosine, Plateau, Step

TINY = Config(devices=4, batch=8, width=4, steps=5, eval_every=2)
WAYS = {
    "sync-sgd": TINY,
    "loop": replace(TINY, fused="off"),
    "batch norm": replace(TINY, norm=Batch(), partition=Labels(3)),
    "fedavg": replace(TINY, algorithm=FedAvg(sync_every=2), norm=Batch()),
    "local norms": replace(TINY, algorithm=FedAvg(sync_every=2), norm=BatchLocal(), cohort=0.5, eval_every=1),
    "local norms' steps": replace(TINY, norm=BatchLocal(), partition=Labels(3)),
    "cohort": replace(TINY, algorithm=FedAvg(sync_every=2, server_momentum=0.5), cohort=0.5),
    "plateau": replace(TINY, schedule=Plateau(0.5, patience=0), warmup_epochs=0.05, eval_every=1),
    "no momentum": replace(TINY, algorithm=SyncSGD(SGD(momentum=0))),
    "dgc": replace(TINY, codec=parse("dgc:0.01:4"), schedule=Cosine()),
    "powersgd": replace(TINY, codec=parse("powersgd:2"), algorithm=FedAvg(sync_every=2)),
    "trimmed": replace(TINY, aggregate=TrimmedMean(0.25), norm=Batch()),
    "watched": replace(
        TINY, algorithm=FedAvg(sync_every=2), partition=Labels(3), diagnose=Full(3), eval_every=1
    ),
    "frozen statistics": replace(TINY, norm=BatchFrozen(0.3), algorithm=FedAvg(sync_every=2), steps=8),
    "mixup": replace(TINY, augment=Augment(crop=1, mixup=0.4), algorithm=FedAvg(sync_every=2)),
    "ema": replace(TINY, norm=Batch(), ema=0.9, schedule=Step(0.5, "0.4"), eval_every=1),
    "down": replace(TINY, codec_down=RandomK(0.1), cohort=0.5, steps=8),
}
FILES = (records.CONFIG, records.ROUNDS, records.PARTITION, records.MODEL, records.SUMMARY)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


def left(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves behind, without what the clock says."""
    files: dict[str, Any] = {name: (folder / name).read_bytes() for name in FILES}
    files[records.ROUNDS] = [{**row, "seconds": 0} for row in records.rows(folder)]
    files[records.SUMMARY] = {**json.loads(files[records.SUMMARY]), "seconds": 0}
    return files


def played(config: Config, out: Path, **options: Any) -> dict[str, Any]:
    for _ in run(config, out, **options):
        pass
    return left(out)


# ---- stopped by the program that plays it ----


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS)
def test_an_iterator_closed_early_is_resumed(config: Config, tmp_path: Path) -> None:
    alone = played(config, tmp_path / "alone")
    play = run(config, tmp_path / "cut", checkpoint_seconds=math.inf)
    for row in play:
        if row.round == 2:
            break
    play.close()
    kept = records.rows(tmp_path / "cut")
    assert [row["round"] for row in kept] == [1, 2]
    assert played(config, tmp_path / "cut", resume=True) == alone
    assert records.rows(tmp_path / "cut")[: len(kept)] == kept, "committed rounds are not played again"


def test_a_consumer_that_fails_loses_no_round(tmp_path: Path) -> None:
    def consume() -> None:
        for row in run(TINY, tmp_path, checkpoint_seconds=math.inf):
            if row.round == 3:
                raise LookupError

    with pytest.raises(LookupError):
        consume()
    assert Checkpoint.load(tmp_path / records.CHECKPOINT).note["round"] == 3


def test_a_run_that_was_never_begun_begins(tmp_path: Path) -> None:
    alone = played(TINY, tmp_path / "alone")
    assert played(TINY, tmp_path / "cut", resume=True) == alone


def test_a_run_from_before_there_were_kernels_keeps_pytorchs(tmp_path: Path) -> None:
    """Its config.toml has no such key: whatever `auto` would take now, it goes on as it began."""
    path = tmp_path / records.CONFIG
    path.write_text(TINY.toml().replace('kernels = "auto"\n', ""))
    assert "kernels" not in path.read_text()
    assert reconcile(path, TINY).kernels == "torch" == overlay(path, {}).kernels
    assert reconcile(path, replace(TINY, kernels="torch")).kernels == "torch"
    for changed in (
        lambda: reconcile(path, replace(TINY, kernels="compiled")),
        lambda: overlay(path, {"kernels": "compiled"}),
    ):
        with pytest.raises(EdgewiseError, match="kernels"):
            changed()


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    played(TINY, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert list(run(TINY, tmp_path, resume=True)) == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("gone", [records.SUMMARY, records.MODEL, records.PARTITION])
def test_what_can_be_written_again_is(gone: str, tmp_path: Path) -> None:
    alone = played(TINY, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in {gone, records.SUMMARY}:
        (tmp_path / name).unlink()
    assert played(TINY, tmp_path, resume=True) == alone
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 6},
        {"steps": None, "epochs": 1.0},
        {"norm": Batch()},
        {"algorithm": SyncSGD(SGD(scalar_share=0.2))},
        {"algorithm": FedAvg()},
        {"schedule": Plateau()},
        {"precision": "fp64"},
        {"fused": "off"},
        {"aggregate": Median()},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_changed_setting_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    next(run(TINY, tmp_path)).round  # noqa: B018
    with pytest.raises(EdgewiseError, match=r"; resume it as it was, or give another --out$") as told:
        next(run(replace(TINY, **change), tmp_path, resume=True))
    changed = "set sgd.scalar_share" if "SGD" in str(change) and "0.2" in str(change) else list(change)[-1]
    assert str(told.value).startswith(f"{changed}: the run in {tmp_path} has ")


def test_other_data_is_noticed_on_resuming(tmp_path: Path, digits: Dataset) -> None:
    next(run(TINY, tmp_path, dataset=digits))
    fewer = replace(digits, train=Split(digits.train.images[:900], digits.train.labels[:900]))
    with pytest.raises(EdgewiseError, match=r"partition\.csv: devices held other examples"):
        next(run(TINY, tmp_path, dataset=fewer, resume=True))


# ---- killed ----

LONG = ("run", "--devices", 4, "--batch", 8, "--width", 4, "--steps", 24, "--eval-every", 5)
FEDAVG = ("--algorithm", "fedavg", "--sync-every", 2)
FLAGS: dict[str, tuple[object, ...]] = {
    "group": ("--norm", "group"),
    "batch": ("--norm", "batch", "--partition", "labels:3", "--augment", "crop:2"),
    # Whose devices remember a vector, are sent one, and ask the round's first model about classes they lack.
    "scaffold": (*FEDAVG, "--algorithm", "scaffold+fedlmd", "--norm", "batch", "--partition", "labels:3"),
    "cohort": (*FEDAVG, "--cohort", 0.5, "--server-momentum", 0.3),
    "plateau": (
        "--schedule",
        "plateau:0.5:0",
        "--warmup-epochs",
        0.3,
        "--warmup-lr",
        0.02,
        "--eval-every",
        3,
    ),
    "topk": ("--codec", "topk:0.01", "--schedule", "cosine"),
    "dgc": ("--codec", "dgc:0.01:8", "--schedule", "cosine"),
    "powersgd": (*FEDAVG, "--codec", "powersgd:2", "--norm", "batch"),
    "down": (*FEDAVG, "--codec-down", "topk:0.1:zstd", "--cohort", 0.5, "--codec", "int8"),
    "side by side": (*FEDAVG, "--fused", "on", "--norm", "group", "--codec", "topk:0.1"),
    "median": (*FEDAVG, "--aggregate", "median", "--norm", "batch"),
    "drawn": ("--codec", "qsgd:4:nofeedback", "--cohort", 0.75),
}


class Alone(dict[str, dict[str, Any]]):
    """What each of these runs leaves behind when nothing happens to it; played when it is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> dict[str, Any]:
        assert edgewise(*LONG, *FLAGS[name], "--out", name, folder=self.folder).status == 0
        self[name] = left(self.folder / name)
        return self[name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


def some_slow(cases: Iterable[tuple[str, float]], *quick: tuple[str, float]) -> list[Any]:
    """All cases, of which those that are not named as quick are for the long tests."""
    return [pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow]) for case in cases]


def begin(folder: Path, *flags: object, program: str | None = None) -> Running:
    return start(*LONG, *flags, "--out", folder, "--resume", folder=folder.parent, program=program)


def finish(folder: Path, *flags: object, program: str | None = None) -> Done:
    done = begin(folder, *flags, program=program).wait()
    assert done.status == 0, done
    assert memories(folder) == named(folder), "no file is left that nothing needs"
    return done


def memories(folder: Path) -> set[str]:
    """The files of devices' memories."""
    place = folder / records.MEMORIES
    return {path.name for path in place.iterdir()} if place.exists() else set()


def named(folder: Path) -> set[str]:
    """Those that the checkpoint names."""
    note = Checkpoint.load(folder / records.CHECKPOINT).note["memories"]
    return {f"{device}-{note['steps'][str(device)]}.safetensors" for device in note["filed"]}


def kill_after(running: Running, folder: Path, rounds: int, delay: float = 0) -> None:
    """Kill a run once it has written down so many rounds, and a little later."""
    until(lambda: len(records.rows(folder)) >= rounds)
    time.sleep(delay)
    running.send(signal.SIGKILL)
    assert running.wait().status in (-signal.SIGKILL, 0)  # 0: it was faster than we


KILLED = [(name, 0) for name in FLAGS] + [("batch", 1000), ("cohort", 1000), ("down", 0.02)]


@pytest.mark.parametrize(
    ("name", "seconds"),
    some_slow(KILLED, ("group", 0), ("scaffold", 0), ("side by side", 0), ("batch", 1000), ("down", 0.02)),
)
def test_a_killed_run_ends_in_the_same_model(alone: Alone, name: str, seconds: float, tmp_path: Path) -> None:
    chance = random.Random(f"{name} {seconds}")
    out = tmp_path / "run"
    more = (*FLAGS[name], "--checkpoint-seconds", seconds)
    kill_after(begin(out, *more), out, chance.randint(1, 4), chance.random() / 50)
    kept = records.rows(out)
    kill_after(begin(out, *more), out, len(kept) + chance.randint(1, 3), chance.random() / 50)
    finish(out, *more)
    assert left(out) == alone[name]
    if seconds == 0:  # what was committed is not played again: its clock still stands
        assert records.rows(out)[: len(kept) - 1] == kept[: len(kept) - 1]


# The command, with no room in RAM: what devices remember, and updates that wait, lie in files all the time.
SPILLING = """
from functools import partial
import edgewise.aggregators.stack, edgewise.assemble, edgewise.cli
edgewise.aggregators.stack.BUDGET = 0
edgewise.assemble.Memories = partial(edgewise.assemble.Memories, budget=0)
edgewise.cli.main()
"""


@pytest.mark.parametrize(
    ("name", "seconds"),
    some_slow([("topk", 0.05), ("dgc", 0.05), ("scaffold", 1000), ("median", 0.05)], ("topk", 0.05)),
)
def test_a_run_killed_with_its_memories_in_files(
    alone: Alone, name: str, seconds: float, tmp_path: Path
) -> None:
    chance = random.Random(f"spilling {name} {seconds}")
    out, more = tmp_path / "run", (*FLAGS[name], "--checkpoint-seconds", seconds)
    for _ in range(3):
        kept = len(records.rows(out)) if out.exists() else 0
        kill_after(begin(out, *more, program=SPILLING), out, kept + 1, chance.random() / 20)
        if (out / records.CHECKPOINT).exists():
            assert memories(out) >= named(out), "what the checkpoint needs is there"
    finish(out, *more, program=SPILLING)
    assert left(out) == alone[name]


STAGES = [records.PARTITION, records.ROUNDS, records.CONFIG, records.CHECKPOINT, records.MODEL]


@pytest.mark.parametrize("file", STAGES)
def test_a_run_killed_as_it_writes_a_file(alone: Alone, file: str, tmp_path: Path) -> None:
    running = begin(tmp_path / "run", "--checkpoint-seconds", 0)
    until((tmp_path / "run" / file).exists)
    running.send(signal.SIGKILL)
    running.wait()
    finish(tmp_path / "run")
    assert left(tmp_path / "run") == alone["group"]


@pytest.mark.parametrize("file", ["3-3.safetensors", ".2-4.safetensors.part"])
def test_a_run_killed_as_it_writes_a_memory(alone: Alone, file: str, tmp_path: Path) -> None:
    flags = (*FLAGS["dgc"], "--checkpoint-seconds", 0)
    running = begin(tmp_path / "run", *flags)
    place = tmp_path / "run" / records.MEMORIES / file
    until(lambda: place.exists() or len(records.rows(tmp_path / "run")) > 5)  # some are there for an instant
    running.send(signal.SIGKILL)
    running.wait()
    finish(tmp_path / "run", *flags)
    assert left(tmp_path / "run") == alone["dgc"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("seconds", [0, 0.05, 1000])
def test_many_kills_at_any_moment(alone: Alone, name: str, seconds: float, tmp_path: Path) -> None:
    chance = random.Random(f"many {name} {seconds}")
    for _ in range(12):
        running = begin(tmp_path / "run", *FLAGS[name], "--checkpoint-seconds", seconds)
        time.sleep(chance.uniform(0.01, 0.3))
        running.send(signal.SIGKILL)
        running.wait()
    finish(tmp_path / "run", *FLAGS[name])
    assert left(tmp_path / "run") == alone[name]


def test_a_run_goes_on_in_another_folder(alone: Alone, tmp_path: Path) -> None:
    kill_after(begin(tmp_path / "here", "--checkpoint-seconds", 0), tmp_path / "here", 5)
    (tmp_path / "here").rename(tmp_path / "there")
    finish(tmp_path / "there")
    assert left(tmp_path / "there") == alone["group"]


def test_two_processes_do_not_play_one_run(alone: Alone, tmp_path: Path) -> None:
    first = begin(tmp_path / "run")
    until((tmp_path / "run" / records.CONFIG).exists)
    second = begin(tmp_path / "run").wait()
    assert second.error == f"{tmp_path / 'run'}: another process goes on with this run; wait or stop it"
    assert first.wait().status == 0
    assert left(tmp_path / "run") == alone["group"]


# ---- interrupted ----


@pytest.mark.parametrize("name", ["batch", "cohort"])
def test_ctrl_c_commits_the_round(alone: Alone, name: str, tmp_path: Path) -> None:
    running = begin(tmp_path / "run", *FLAGS[name], "--checkpoint-seconds", 1000)
    until(lambda: len(records.rows(tmp_path / "run")) >= 3)
    running.send(signal.SIGINT)
    done = running.wait()
    assert (done.status, done.out) == (130, "")
    assert done.err.endswith(
        "edgewise: stopping after this round (Ctrl-C again: at once)\n"
        "edgewise: interrupted; --resume continues from what was committed\n"
    )
    kept = records.rows(tmp_path / "run")
    assert Checkpoint.load(tmp_path / "run" / records.CHECKPOINT).note["round"] == len(kept) >= 3
    finish(tmp_path / "run")  # its own config stands: no flag needs to be given again
    assert left(tmp_path / "run") == alone[name]
    assert records.rows(tmp_path / "run")[: len(kept)] == kept


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = begin(out, "--algorithm", "fedavg", "--sync-every", 2000, "--steps", 4000)  # long rounds
    until((out / records.CONFIG).exists)
    running.send(signal.SIGINT)
    until(lambda: "stopping after this round" in running.err)
    running.send(signal.SIGINT)
    done = running.wait()
    assert done.status == 130 and "Traceback" not in done.err
    assert done.err.endswith("edgewise: interrupted; --resume continues from what was committed\n")
    assert records.rows(out) == [], "the round was not played to its end"


def test_a_finished_run_prints_its_summary_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = finish(out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    again = edgewise("run", "--out", out, "--resume", folder=tmp_path)
    assert (again.status, again.out, again.err) == (0, first.out, "")
    shown = json.loads(again.out.removeprefix(f"{out}: "))
    summary = records.summary(out) or {}
    assert shown == {name: summary[name] for name in shown} and shown["rounds"] == 24
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_run_that_has_a_checkpoint_needs_the_weights_it_started_from_no_more(tmp_path: Path) -> None:
    played(TINY, tmp_path / "first")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((tmp_path / "first" / records.MODEL).read_bytes())
    config = replace(TINY, start=str(weights))
    alone = played(config, tmp_path / "alone")
    for name, seconds in (("cut", 0.0), ("early", math.inf)):
        play = run(config, tmp_path / name, checkpoint_seconds=seconds)
        next(play)
        if name == "cut":
            play.close()
        else:  # a kill before the first checkpoint
            killed = shutil.copytree(tmp_path / name, tmp_path / "killed")
            play.close()
    weights.unlink()
    assert played(config, tmp_path / "cut", resume=True) == alone
    assert f'start = "{weights}"' in (tmp_path / "cut" / records.CONFIG).read_text()
    with pytest.raises(EdgewiseError, match=r"weights.safetensors: not readable weights \(No such file"):
        played(config, killed, resume=True)
