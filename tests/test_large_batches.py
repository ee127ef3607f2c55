"""What large batches are trained with, all of it at once, reaches real devices with the config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgewise import SGD, Config, CrossEntropy, SyncSGD, records
from edgewise.data.batches import Augment
from edgewise.rounds import run
from edgewise.schedules import Step


def test_a_fleet_ends_in_the_digest_of_the_loop(tmp_path: Path) -> None:
    config = Config(
        algorithm=SyncSGD(SGD(0.1, nesterov=True, decay="weights", agc=0.01)),
        objective=CrossEntropy(0.1),
        augment=Augment(crop=1, mixup=0.4),
        schedule=Step(0.5, "0.5"),
        ema=0.5,
        devices=2,
        batch=8,
        width=4,
        steps=3,
        eval_every=0,
        fused="off",
    )
    digests = []
    for engine in ("inline", "fleet"):
        list(run(replace(config, engine=engine), tmp_path / engine))
        summary = records.summary(tmp_path / engine)
        assert summary is not None and summary["evaluated"] == "ema"
        digests.append(summary["model_digest"])
    assert digests[0] == digests[1]
