"""The mean of the state over rounds: its weights by hand, what is evaluated, saved and sent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgewise import records
from edgewise.algorithms import FedAvg
from edgewise.algorithms.base import Server
from edgewise.assemble import assemble
from edgewise.config import Config
from edgewise.errors import EdgewiseError
from edgewise.evaluate import evaluate
from edgewise.models.norms import Batch, BatchLocal
from edgewise.progress import Progress
from edgewise.rounds import run
from edgewise.vector import State

TINY = Config(devices=2, batch=8, width=4, steps=6, eval_every=3, precision="fp64", norm=Batch())


def test_the_weights_of_rounds_by_hand() -> None:
    progress = Progress(Server(State(torch.zeros(1), torch.zeros(1))), way=None)  # type: ignore[arg-type]
    for number, value in enumerate((4.0, 10.0, -2.0), start=1):
        state = progress.server.state
        state.params.fill_(value)
        state.buffers.fill_(-value)
        progress.round = number
        progress.average(0.5)
    # (1/4 * 4 + 1/2 * 10 - 2) / (1/4 + 1/2 + 1)
    assert progress.model.params.item() == pytest.approx(4 / 1.75)
    assert progress.model.buffers.item() == pytest.approx(-4 / 1.75)
    assert progress.server.state.params.item() == -2


@pytest.mark.parametrize("algorithm", [Config().algorithm, FedAvg(sync_every=2)], ids=["sync-sgd", "fedavg"])
def test_the_mean_is_evaluated_and_saved_and_training_does_not_see_it(
    algorithm: FedAvg, tmp_path: Path
) -> None:
    plain = replace(TINY, algorithm=algorithm)
    ends = []
    for count in range(1, 4):  # the states after one, two, three rounds
        cut = replace(plain, steps=count * algorithm.sync_every, eval_every=0)
        list(run(cut, tmp_path / str(count)))
        ends.append(load_file(tmp_path / str(count) / records.MODEL))
    config = replace(plain, steps=3 * algorithm.sync_every, ema=0.5)
    rows = list(run(config, tmp_path / "ema"))
    saved = load_file(tmp_path / "ema" / records.MODEL)
    for name, tensor in saved.items():
        mean = (ends[0][name] + 2 * ends[1][name] + 4 * ends[2][name]) / 7
        assert torch.allclose(tensor, mean, rtol=0, atol=1e-14), name
    parts = assemble(config)
    parts.model.module.load_state_dict(saved)
    assert parts.dataset is not None and parts.feed is not None
    expected = evaluate(parts.model, parts.dataset.test, parts.feed, 10)
    assert (rows[-1].accuracy, rows[-1].loss) == (expected.accuracy, expected.loss)
    assert [row.evaluated for row in rows] == [None, None, "ema"]
    summary = json.loads((tmp_path / "ema" / records.SUMMARY).read_text())
    assert summary["evaluated"] == "ema" and summary["accuracy"] == expected.accuracy
    assert "evaluated" not in json.loads((tmp_path / "3" / records.SUMMARY).read_text())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_makes_no_sense_is_refused(decay: float) -> None:
    with pytest.raises(EdgewiseError, match=r"^ema: .* out of range"):
        Config(ema=decay)


def test_norms_that_stay_on_devices_have_no_mean() -> None:
    with pytest.raises(EdgewiseError, match=r"^ema: every device has norms of its own"):
        assemble(replace(TINY, ema=0.9, norm=BatchLocal()))
