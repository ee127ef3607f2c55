"""Training that goes on: releases by hand, a drifting stream, a stop in the middle, and the commands."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import edgewise, start, until

from edgewise import Config, Dirichlet, Iid, Releases
from edgewise.data import digits
from edgewise.errors import EdgewiseError
from edgewise.ongoing import _arrivals, _present, ongoing
from edgewise.releases import Standing

ROOT = Path(__file__).parent.parent
MODEL = "examples.shelf:model"
TINY = Config(
    model=MODEL, convert=True, partition=Dirichlet(1), devices=3, batch=8, steps=60, eval_every=0, width=4
)


def weights(folder: Path, text: str) -> Path:
    (folder / text).write_text(text)
    return folder / text


def test_a_release_is_no_worse_over_all_and_on_the_worst_device(tmp_path: Path) -> None:
    held = Releases.read(tmp_path / "r")
    held = held.offer(weights(tmp_path, "a"), Standing(0.5, 0.2), None)
    assert (held.current, held.events[-1].kind) == (1, "released")
    for worse in (Standing(0.49, 0.9), Standing(0.9, 0.19)):
        held = held.offer(weights(tmp_path, "b"), worse, Standing(0.5, 0.2))
        assert (held.current, held.events[-1].kind) == (1, "refused")
    assert "on the worst device would fall from 20.0% to 19.0%" in held.events[2].reason
    held = held.offer(weights(tmp_path, "c"), Standing(0.49, 0.19), Standing(0.5, 0.2), tolerance=0.02)
    assert held.current == 2 and held.weights().read_text() == "c" and held.weights(1).read_text() == "a"
    assert Releases.read(tmp_path / "r") == held, "history is kept"
    nan = held.offer(weights(tmp_path, "d"), Standing(float("nan"), 0.9), Standing(0.5, 0.2))
    assert nan.events[-1].kind == "refused"


def test_the_way_back(tmp_path: Path) -> None:
    held = Releases.read(tmp_path / "r")
    with pytest.raises(EdgewiseError, match="holds no release yet"):
        held.weights()
    for text in "abc":
        held = held.offer(weights(tmp_path, text), Standing(1, 1), None)
    held = held.roll_back()
    assert held.current == 2 and held.roll_back().weights().read_text() == "a"
    held = Releases.read(tmp_path / "r").roll_back(3)
    assert held.current == 3 and [e.kind for e in held.events][-3:] == ["rolled back"] * 3
    with pytest.raises(EdgewiseError, match="no release 9 to go back to; there are: 1, 2, 3"):
        held.roll_back(9)
    assert held.offer(weights(tmp_path, "d"), Standing(1, 1), None).current == 4, (
        "numbers are not given twice"
    )
    (tmp_path / "r" / "releases.json").write_text('{"current": 1')
    with pytest.raises(EdgewiseError, match="not a readable history"):
        Releases.read(tmp_path / "r")


def test_classes_appear_in_order_and_nobody_trains_on_what_is_held_out() -> None:
    labels = digits.load().train.labels
    arrival = _arrivals(labels, 10, 5, 0)
    for phase in range(5):
        assert set(labels[arrival <= phase].tolist()) == set(range(2 * (phase + 1)))
    owners = [torch.arange(0, 700), torch.arange(700, 1400)]
    out: set[int] = set()
    for phase in range(5):
        held, kept = _present(owners, arrival <= phase, 0)
        held_now, kept_now = set(torch.cat(held).tolist()), set(torch.cat(kept).tolist())
        assert out <= held_now and not held_now & kept_now
        assert 0.1 < len(held_now) / (len(held_now) + len(kept_now)) < 0.3
        out = held_now


def test_a_drifting_stream_from_end_to_end(tmp_path: Path) -> None:
    phases = list(ongoing(TINY, tmp_path / "o", phases=2, tolerance=1.0))
    assert [(p.number, p.classes) for p in phases] == [(1, 5), (2, 10)]
    assert phases[1].examples > phases[0].examples and phases[1].current == 2
    before, candidate = phases[1].event.before, phases[1].event.candidate
    assert before is not None and candidate is not None
    assert before.accuracy < 0.75, "the first release knows half of the classes"
    assert candidate.accuracy > before.accuracy
    assert list(ongoing(TINY, tmp_path / "o", phases=2)) == [], "what is done is not done again"
    with pytest.raises(EdgewiseError, match="--phases: 11 is out of range; legal: 1 to 10"):
        list(ongoing(TINY, tmp_path / "o", phases=11))
    for other, phases, says in (
        (TINY, 5, r"--phases: the stream in .*o has 2, not 5; legal: 2, or another --out"),
        (TINY, 1, r"--phases: the stream in .*o has 2, not 1; legal: 2, or another --out"),
        (replace(TINY, seed=1), 2, r"seed: the stream in .*o has 0, not 1; resume it as it was, or give"),
        (replace(TINY, partition=Iid()), 2, r"partition: the stream in .*o has 'dirichlet:1', not 'iid'"),
    ):
        with pytest.raises(EdgewiseError, match=says) as caught:
            list(ongoing(other, tmp_path / "o", phases=phases))
        assert "\n" not in str(caught.value)
    (tmp_path / "o" / "stream.json").write_text('{"phases": 2')
    with pytest.raises(EdgewiseError, match=r"stream.json: not a readable description"):
        list(ongoing(TINY, tmp_path / "o", phases=2))


def test_a_stream_that_never_began_may_begin_as_another(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match="model"):
        list(ongoing(replace(TINY, model="examples.shelf:nothing"), tmp_path / "o", phases=2))
    (phase,) = ongoing(replace(TINY, steps=1), tmp_path / "o", phases=1)
    assert phase.current == 1


@pytest.mark.slow
def test_a_stream_that_is_stopped_ends_in_the_same_releases(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    # So many steps that the first phase still goes on when it is stopped, on a busy machine too.
    flags = ["ongoing", "--model", MODEL, "--devices", 3, "--batch", 4, "--steps", 400, "--phases", 2]
    flags += ["--eval-every", 0, "--tolerance", 1]
    whole = edgewise(*flags, "--out", "whole", folder=tmp_path)
    assert whole.status == 0 and "phase 2: 10 classes" in whole.out
    running = start(*flags, "--out", "cut", folder=tmp_path)
    rounds = tmp_path / "cut" / "phases" / "001" / "rounds.jsonl"
    until(lambda: rounds.exists() and rounds.read_text().count("\n") >= 2)
    running.send(signal.SIGINT)
    done = running.wait()
    assert (done.status, done.err) == (130, "edgewise: interrupted; the same command goes on\n")
    assert edgewise(*flags, "--out", "cut", folder=tmp_path).status == 0
    for file in ("release-001.safetensors", "release-002.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    back = edgewise("releases", "cut", "--roll-back", folder=tmp_path)
    assert back.status == 0 and back.out.rstrip().endswith("current: cut/release-001.safetensors")
    assert json.loads((tmp_path / "cut" / "releases.json").read_text())["current"] == 1
    assert "holds no releases" in edgewise("releases", "nowhere", folder=tmp_path).error


def test_tensorboard_is_written_beside_the_records(tmp_path: Path) -> None:
    flags = ["run", "--width", 4, "--batch", 4, "--steps", 3, "--eval-every", 1, "--devices", 2]
    done = edgewise(*flags, "--tensorboard", "--out", "r", folder=tmp_path)
    assert done.status == 0, done.err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    read.Reload()
    rows = [json.loads(line) for line in (tmp_path / "r" / "rounds.jsonl").read_text().splitlines()]
    for name in ("train_loss", "accuracy", "bytes_up"):
        found = [(event.step, event.value) for event in read.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
