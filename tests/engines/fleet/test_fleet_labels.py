"""How many examples of each class a device holds is for its own operator to tell."""

from pathlib import Path

import pytest
import torch

from edgewise import broadcast, data, wire
from edgewise.codecs import Sending
from edgewise.config import Config
from edgewise.deploy import assemble_coordinator, equip
from edgewise.device import Memory
from edgewise.engines.fleet.duty import Training
from edgewise.engines.fleet.messages import down, up
from edgewise.engines.fleet.policy import Policy
from edgewise.engines.fleet.scores import combine


def duties(folder: Path, *, tell: bool) -> tuple[Training, list[bytes]]:
    """A device's duty, and the frames of a task to evaluate."""
    dataset = data.load("digits")
    parts = assemble_coordinator(Config.of({"steps": 2, "width": 4, "devices": 1}), dataset)
    plan = down(plan=parts.fleet_run(folder).plan(Policy(labels=True))).plan
    duty = Training(equip(plan, dataset, 0, None, (), "cpu"), tell)
    model, codec = parts.model, broadcast.full(parts.config.codec_down)
    frame = wire.Frame(
        kind=wire.Kind.STATE,
        layout=wire.layout_mark(model.layout.digest),
        codec=broadcast.marks(parts.config.codec_down)[wire.Kind.STATE],
        round=1,
        device=wire.EVERYONE,
        value=1.0,
        count=1,
        payload=codec.encode(model.params, model.layout, {}, Sending())[0],
        buffers=model.buffers.numpy().tobytes(),
    )
    return duty, [wire.pack(frame)]


@pytest.mark.parametrize("tell", [False, True])
def test_label_counts_leave_only_where_the_device_lets_them(tell: bool, tmp_path: Path) -> None:
    duty, frames = duties(tmp_path, tell=tell)
    dataset = data.load("digits")
    counts = torch.bincount(dataset.train.labels).tolist()
    assert (list(duty.labels), duty.examples) == (counts if tell else [], sum(counts))
    answer = duty.score(frames, Memory())
    assert answer["seen"] == len(dataset.test)
    seen = torch.bincount(dataset.test.labels).tolist()
    assert answer["seen_each"] == (seen if tell else [])
    assert len(answer["right_each"]) == (10 if tell else 0)


def test_an_evaluation_without_them_has_no_classes_and_the_same_accuracy(tmp_path: Path) -> None:
    found = []
    for tell in (False, True):
        duty, frames = duties(tmp_path, tell=tell)
        found.append(combine([up(scores=duty.score(frames, Memory())).scores], 10))
    quiet, open = found
    assert (quiet.accuracy, quiet.loss, quiet.worst) == (open.accuracy, open.loss, open.worst)
    assert quiet.per_class == (None,) * 10 and None not in open.per_class
