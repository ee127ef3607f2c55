"""What so many devices cost: the start of a run, a round's bookkeeping, and memory.

    python benchmarks/scale.py [--devices 1000 100000] [--cohort 100] [--rounds 50] [--json FILE]

A linear model on devices with 20 examples each, federated averaging with five steps of 4, a process for each
number of devices. `start` lasts from the call to the first round's end; `round` is the median of those after;
`beside` is what is left of it without training (order, batches, steps): choosing whom to ask, encoding,
decoding, diagnostics, the mean, the server's step, a line of records. `memory` is that of the process at its
peak, above what it had with the data loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from simulate import machine
from torch import Tensor

from edgewise import SGD, Config, Dataset, FedAvg, run
from edgewise.data.batches import Augment
from edgewise.engines.batched import Batched

EXAMPLES, BATCH, STEPS = 20, 4, 5
WARM = 5  # rounds
ASKED = "asked of 100,000 devices at cohorts of 100: start 10 s, beside 5 ms, memory 1024 MiB"


def data(devices: int) -> tuple[Dataset, list[Tensor]]:
    """Noise of 8x8 pixels, and which of it each device has."""
    generator = torch.Generator().manual_seed(0)
    count = devices * EXAMPLES
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    dataset = Dataset.of("noise", train=(images, labels), test=(images[:10], labels[:10]))
    return dataset, list(torch.arange(count).split(EXAMPLES))


def peak() -> float:
    """MiB that this process had in RAM at most."""
    unit = 1 << (20 if sys.platform == "darwin" else 10)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def timed(action: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same action, whose seconds are noted."""

    def timing(*given: Any) -> Any:
        began = time.perf_counter()
        found = action(*given)
        spent.append(time.perf_counter() - began)
        return found

    return timing


def measure(devices: int, cohort: int, rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    dataset, dealt = data(devices)
    before, spent = peak(), list[float]()
    Batched._learned = timed(Batched._learned, spent)  # type: ignore[method-assign]
    config = Config(
        model="small_cases:linear",
        devices=devices,
        cohort=cohort,
        algorithm=FedAvg(SGD(0.01, momentum=0, weight_decay=0), sync_every=STEPS),
        batch=BATCH,
        steps=STEPS * (1 + WARM + rounds),
        augment=Augment(),
        eval_every=0,
        accelerator="cpu",
        fused="on",
    )
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        playing = run(config, folder, dataset=dataset, dealt=dealt, checkpoint_seconds=math.inf)
        next(playing)
        start = time.perf_counter() - began
        for _ in range(WARM):
            next(playing)
        times, beside = [], []
        for _ in range(rounds - 1):  # the last one evaluates and finishes
            spent.clear()
            began = time.perf_counter()
            next(playing)
            times.append(time.perf_counter() - began)
            beside.append(times[-1] - sum(spent))
        size = (Path(folder) / "rounds.jsonl").stat().st_size / (1 + WARM + rounds - 1)
        playing.close()
    return {
        "start_s": start,
        "round_ms": 1e3 * statistics.median(times),
        "beside_ms": 1e3 * statistics.median(beside),
        "memory_MiB": peak() - before,
        "record_B": size,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1000, 100_000], help="how many")
    parser.add_argument("--cohort", type=int, default=100, help="devices of a round (100)")
    parser.add_argument("--rounds", type=int, default=50, help="timed rounds (50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # in a process of its own
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(measure(given.one, given.cohort, given.rounds)))
        return 0
    if given.rounds < 2 or not 0 < given.cohort <= min(given.devices):
        parser.error("rounds are 2 or more, and a cohort has no more than all devices")
    print(about := f"{machine()}; cohorts of {given.cohort}, {given.rounds} rounds; {ASKED}")
    results = {}
    for devices in given.devices:
        flags = ["--one", str(devices), "--cohort", str(given.cohort), "--rounds", str(given.rounds)]
        done = subprocess.run(
            [sys.executable, __file__, *flags], check=True, capture_output=True, cwd=Path(__file__).parent
        )
        found = results[devices] = json.loads(done.stdout.splitlines()[-1])
        print(f"{devices}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"about": about, "devices": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
