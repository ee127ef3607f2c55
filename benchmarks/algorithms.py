"""What each algorithm costs over plain federated averaging: a round's time as a ratio, side by side.

    python benchmarks/algorithms.py [--cases scaffold fedlmd] [--rounds 12] [--json FILE]

All run in this process on one thread, each as `edgewise.run` with records and without evaluation, and take
turns, in reversed order every other time; a ratio is the median over neighbouring rounds, with a 95 %
bootstrap interval. "fedavg" is held to itself as well: what its ratio is away from 1 is noise.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from simulate import ENDLESS, SEED, WARMUP, Seconds, alternate, load, machine, ratio

from edgewise import SGD, Config, Dataset, FedAvg, Labels, run
from edgewise.algorithms import ALGORITHMS, parse
from edgewise.data.batches import Augment

BASE = "plain"
MIXED = "fedlmd+fedcm"
NAMES = [*(name for name in ALGORITHMS if name != "sync-sgd"), MIXED]
CHEAP, DISTILLED = 1.15, 1.5  # asked of those without and with one more forward pass
TEACHERS = ("fedntd", "fedlmd", MIXED)
Sides = dict[str, Callable[[], object]]
TWICE = ("sam",)  # a second gradient, by its nature


def asked(name: str) -> float | None:
    """The ratio that it may have; None where none was asked for."""
    return None if name in TWICE else DISTILLED if name in TEACHERS else CHEAP


def sides(names: Sequence[str], config: Config, dataset: Dataset, stack: ExitStack) -> Sides:
    """One endless run for each name, and one of plain fedavg to hold them to."""
    found: Sides = {}
    for name in (BASE, *names):
        every = config.algorithm.sync_every
        algorithm = parse("fedavg" if name == BASE else name, SGD(0.05, 0.9, 5e-4), sync_every=every)
        folder = stack.enter_context(TemporaryDirectory())
        told = replace(config, algorithm=algorithm)
        play = run(told, folder, dataset=dataset, checkpoint_seconds=math.inf)
        found[name] = stack.enter_context(closing(play)).__next__
    return found


def measure(names: Sequence[str], config: Config, dataset: Dataset, rounds: int) -> Seconds:
    with ExitStack() as stack:
        playing = sides(names, config, dataset, stack)
        alternate(playing, WARMUP)
        return alternate(playing, rounds)


def line(name: str, seconds: Seconds) -> str:
    middle, low, high = ratio(seconds[name], seconds[BASE])
    most = asked(name)
    wanted = "" if most is None else f" (asked: {most:g}{', MISSED' if middle > most else ''})"
    median = 1e3 * float(np.median(seconds[name]))
    return f"{name}: {median:.1f} ms, {middle:.3f} [{low:.3f}, {high:.3f}]{wanted}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES, help="which (all)")
    parser.add_argument("--width", type=int, default=16, help="channels of the model's first stage (16)")
    parser.add_argument("--devices", type=int, default=5, help="number of devices, of two classes each (5)")
    parser.add_argument("--batch", type=int, default=32, help="examples a device takes a step (32)")
    parser.add_argument("--steps", type=int, default=2, help="local steps a round (2)")
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds of each (12)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's seconds here too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    dataset = load()
    config = Config(
        data=dataset.name,
        devices=given.devices,
        partition=Labels(2),
        width=given.width,
        algorithm=FedAvg(sync_every=given.steps),
        batch=given.batch,
        steps=ENDLESS,
        augment=Augment(4, flip=True),
        eval_every=0,
        accelerator="cpu",
    )
    sizes = f"width {given.width}, {given.devices} devices x {given.batch}, K = {given.steps}"
    print(about := f"{machine()}; {dataset.name}, {sizes}, {given.rounds} rounds", flush=True)
    seconds = measure(given.cases, config, dataset, given.rounds)
    for name in given.cases:
        print(line(name, seconds), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"about": about, "seconds": seconds}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
