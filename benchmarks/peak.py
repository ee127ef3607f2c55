"""How near a run of a figure comes to what the processor can do: images a second, and of its products.

    python benchmarks/peak.py [table1] [--run group-128] [--scale paper] [--seconds 20]

Plays rounds of one run of a figure on the accelerator that it would take (a GPU if there is one), without
evaluation and checkpoints, and measures beside it the largest rate of matrix products in the run's precision.
A training step is counted as three passes of the model's products, which `torch.utils.flop_counter` counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from simulate import machine
from torch.utils.flop_counter import FlopCounterMode

from edgewise import Config, data, experiments, run
from edgewise.assemble import assemble

SIZES = {"cuda": (4096, 8192), "cpu": (512, 1024)}  # of square matrices
WARM = 10  # rounds
LONG = 10**7  # steps


def fastest(place: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """The highest rate of a product of two matrices, in operations a second."""
    rates = []
    for size in SIZES[place.type]:
        one, two = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
        rates.append(2 * size**3 / _lasts(lambda one=one, two=two: one @ two, place, seconds))
    return max(rates)


def _lasts(work: Callable[[], object], place: torch.device, seconds: float) -> float:
    """How long one call takes, of as many as that time holds."""
    work()
    count, until = 0, time.perf_counter() + seconds
    _idle(place)
    began = time.perf_counter()
    while time.perf_counter() < until or not count:
        for _ in range(10 if place.type == "cuda" else 1):
            work()
            count += 1
        _idle(place)
    return (time.perf_counter() - began) / count


def _idle(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def operations(config: Config) -> float:
    """What training on one image takes: forward, and twice that backward."""
    parts = assemble(replace(config, accelerator="cpu", precision="fp32"))
    image = torch.zeros(1, *parts.shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        parts.model.module(image)
    return 3.0 * counter.get_total_flops()


def rate(config: Config, seconds: float) -> tuple[float, int]:
    """Images a second, and how many rounds were looked at."""
    with tempfile.TemporaryDirectory() as folder:
        playing = run(config, folder, checkpoint_seconds=1e9)
        for _ in range(WARM):
            seen = next(playing).examples_seen
        began, rounds, now = time.perf_counter(), 0, seen
        while time.perf_counter() < began + seconds or not rounds:
            now, rounds = next(playing).examples_seen, rounds + 1
        found = (now - seen) / (time.perf_counter() - began)  # every round has read its loss
        playing.close()
    return found, rounds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figure", nargs="?", default="table1")
    parser.add_argument("--run", default="group-128", help="which of its runs (group-128)")
    parser.add_argument("--scale", default="paper", help="demo, laptop or paper (paper)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to look (20)")
    given = parser.parse_args(arguments)
    whole = experiments.plan(given.figure, given.scale).runs[given.run]
    config = replace(whole, epochs=None, steps=LONG, eval_every=LONG)
    torch.set_num_threads(config.threads)  # of the products beside it, too
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "no GPU"
    print(f"{machine()}; {name}; {given.figure} {given.run}, {given.scale} scale, {config.precision}")
    best, each = fastest(place, dtype), operations(config)
    images, rounds = rate(config, given.seconds)
    share = images * each / best
    done = f"{each / 1e6:,.1f} MFLOP each: {images * each / 1e12:.3f} TFLOP/s"
    print(f"{images:,.0f} images/s over {rounds} rounds, {done}")
    print(f"{share:.0%} of {best / 1e12:.3f} TFLOP/s, the best of a matrix product in {config.precision}")
    if whole.epochs:
        examples = len(data.load(config.data).train)
        print(f"training of the whole run at this rate: {whole.epochs * examples / images:,.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
