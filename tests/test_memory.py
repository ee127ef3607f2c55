"""A round holds one model, however many devices take part: never one a device."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewise.algorithms import Algorithm, FedAvg, SyncSGD
from edgewise.assemble import Parts, assemble
from edgewise.codecs import parse
from edgewise.config import Config
from edgewise.data import Dataset
from edgewise.memories import Memories
from edgewise.optimizers import SGD
from edgewise.rounds import Progress, _round

GIB = 2**30
ALGORITHMS = {"sync-sgd": SyncSGD(SGD(0.01)), "fedavg": FedAvg(SGD(0.01), sync_every=1)}


@pytest.fixture(scope="module")
def specks() -> Dataset:
    images = torch.zeros(80, 1, 4, 4, dtype=torch.uint8)
    labels = torch.arange(80) % 2
    return Dataset.of("specks", train=(images, labels), test=(images[:4], labels[:4]))


def parts_for(algorithm: Algorithm, devices: int, fused: str, dataset: Dataset, codec: str = "none") -> Parts:
    config = Config(
        devices=devices, width=8, algorithm=algorithm, batch=1, steps=3, eval_every=0, fused=fused
    )
    return assemble(replace(config, codec=parse(codec)), dataset)


def new_vectors(size: int) -> int:
    """How many stretches of memory as large as a model's parameters were taken since `gc.freeze`."""
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return len({storage.data_ptr() for storage in storages if storage.nbytes() >= size})


def most_held(parts: Parts, folder: Path | None = None, rounds: int = 1) -> tuple[int, float]:
    """In some rounds: the most vectors alive beside the model while a device trains, and the peak of Python's
    own memory (payloads are bytes) in vectors. `folder`: of memories, of which two vectors may be in RAM."""
    size, held = parts.model.params.nbytes, [0]
    progress = Progress.start(parts)
    engine = parts.engine()
    engine.memories = Memories(None, folder, budget=2 * size)
    hook = parts.model.module.register_forward_hook(lambda *_: held.append(new_vectors(size)))
    gc.collect()
    gc.freeze()  # what is there now is not seen by get_objects
    tracemalloc.start()
    try:
        for _ in range(rounds):
            _round(parts, engine, progress)
        return max(held), tracemalloc.get_traced_memory()[1] / size
    finally:
        tracemalloc.stop()
        gc.unfreeze()
        hook.remove()


@pytest.mark.parametrize(("name", "fused"), [("sync-sgd", "off"), ("sync-sgd", "on"), ("fedavg", "off")])
def test_a_round_over_many_devices_holds_what_one_over_few_holds(
    specks: Dataset, name: str, fused: str
) -> None:
    few, many = (most_held(parts_for(ALGORITHMS[name], devices, fused, specks)) for devices in (3, 12))
    assert few[0] == many[0] <= 4 + (fused == "off")  # the directions' sum (diagnosis/drift.py)
    assert (few[1] >= 1) == (fused == "off")  # the bytes of an update: seen, or never made
    assert many[1] < few[1] + 1


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "codec", [*(pytest.param(name, marks=SLOW) for name in ("powersgd:1", "dgc:0.01")), "topk:0.01"]
)
def test_what_devices_owe_is_held_up_to_a_budget(specks: Dataset, tmp_path: Path, codec: str) -> None:
    sizes = {3: "few", 12: "many"}
    few, many = (
        most_held(parts_for(ALGORITHMS["sync-sgd"], devices, "off", specks, codec), tmp_path / name, rounds=2)
        for devices, name in sizes.items()
    )
    assert few[0] <= many[0] <= few[0] + 1 and many[0] <= 5 + 2
    held = most_held(parts_for(ALGORITHMS["sync-sgd"], 12, "off", specks, codec), rounds=2)
    assert held[0] >= 12, "without a folder, all of them"


# The round's own process: it counts from where the data is loaded and PyTorch has trained once, before there
# is a model. The high-water mark is that of the address space (VmHWM): ru_maxrss would be inherited from
# the process that starts this one.
ROUND = """
import sys
from dataclasses import replace
from pathlib import Path

import torch

from edgewise import data, rounds
from edgewise.config import Config

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

digits = data.load("digits")
flat = {"devices": 1000, "batch": 1, "steps": 1, "fused": "off", "algorithm": sys.argv[1], "sync_every": 1}
small = Config.of({**flat, "devices": 2, "width": 4})
list(rounds.run(small, Path(sys.argv[2]) / "small", dataset=digits))
before = status("VmRSS")
(row,) = rounds.run(Config.of({**flat, "width": 64}), Path(sys.argv[2]) / "large", dataset=digits)
assert row.bytes_up > 1000 * 4 * 11_000_000, row.bytes_up
print(before, status("VmHWM"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_thousand_devices_with_resnet18_fit_two_gib(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", ROUND, name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    print(f"{name}: {before / GIB:.2f} GiB before, {peak / GIB:.2f} at the peak")
    assert peak - before < 2 * GIB, f"{(peak - before) / GIB:.2f} GiB"
