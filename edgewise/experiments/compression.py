"""Accuracy against the bytes that devices send: codecs under synchronous SGD and federated averaging.

Not a figure of this post: the second post of the reference's series is about compression, and its results
are not to be found. Ten devices hold two classes each, or a random tenth of everything; what a device sends
all run long is held against what it would have sent uncompressed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from edgewise import codecs
from edgewise.algorithms import Algorithm, FedAvg, SyncSGD
from edgewise.config import Config
from edgewise.data.batches import Augment
from edgewise.data.partition import Iid, Labels, Partition
from edgewise.experiments.base import Figure
from edgewise.experiments.tradeoff import Tradeoff
from edgewise.models.norms import Group
from edgewise.optimizers import SGD
from edgewise.schedules import Cosine

BASE = Config(devices=10, norm=Group(), schedule=Cosine())

# Thousands of small steps rather than hundreds of large ones: what a codec holds back is some hundred rounds
# late, which a short run cannot make up for.
SCALES = {
    "demo": replace(BASE, data="digits", width=6, batch=8, augment=Augment(crop=1), steps=300),
    "laptop": replace(BASE, data="cifar10", width=16, batch=4, steps=2000),
    "paper": replace(BASE, data="cifar10", width=64, batch=32, epochs=100),
}
ALGORITHMS: dict[str, Algorithm] = {
    "sync-sgd": SyncSGD(SGD(lr=0.05)),
    "fedavg-10": FedAvg(SGD(lr=0.02), sync_every=10),
    "fedavg-150": FedAvg(SGD(lr=0.02), sync_every=150),
}
PARTITIONS: dict[str, Partition] = {"skewed": Labels(2), "iid": Iid()}
EVALUATIONS = 5  # a run

# By algorithm and partition: the codecs, and from how many seeds. What claims rest on is run from several.
# lowrank:0.0099 is 1/100 of the bytes with the frame around it; at K = 150, 0.0284 is 1/5,000 of sync-sgd's.
CELLS: dict[tuple[str, str], dict[str, int]] = {
    ("sync-sgd", "skewed"): {"none": 3, "topk:0.02:8": 2, "powersgd:2:8": 1, "lowrank:0.0099": 3},
    ("sync-sgd", "iid"): {"none": 1, "lowrank:0.0099": 1},
    ("fedavg-10", "skewed"): {"none": 3, "topk:0.02:8": 1, "powersgd:2:8": 2, "lowrank:0.0099": 3},
    ("fedavg-10", "iid"): {"none": 1, "powersgd:2:8": 1, "lowrank:0.0099": 1},
    ("fedavg-150", "skewed"): {"none": 1, "stc:0.1": 1, "lowrank:0.0284": 1},
    ("fedavg-150", "iid"): {"none": 1, "lowrank:0.0284": 1},
}


def runs(scale: str) -> dict[str, Config]:
    """The runs of the figure, by name; their seeds count from 0."""
    found = {}
    for (algorithm, partition), seeds in CELLS.items():
        for text, count in seeds.items():
            name = "-".join([algorithm, partition, *text.split(":")])
            for seed in range(count):
                config = _config(SCALES[scale], algorithm, partition, text)
                found[name + (f"-seed{seed}" if seed else "")] = replace(config, seed=seed)
    return found


def _config(base: Config, algorithm: str, partition: str, text: str) -> Config:
    config = replace(
        base,
        algorithm=ALGORITHMS[algorithm],
        partition=PARTITIONS[partition],
        codec=codecs.parse(text),
    )
    if config.steps is not None:
        rounds = math.ceil(config.steps / config.algorithm.sync_every)
        config = replace(config, eval_every=max(1, rounds // EVALUATIONS))
    return config


FIGURE = Figure(
    title="Accuracy against bytes: ResNet18, 10 devices",
    source="The subject of the reference's second post, whose results are not to be found",
    statement=(
        "The reference names the uplink as what limits training on devices, and compression as the answer."
    ),
    scales=tuple(SCALES),
    runs=runs,
    page=Tradeoff(),
)
