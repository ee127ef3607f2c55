"""What watching a run costs: a round with `--diagnose` as a ratio to the same round without.

    python benchmarks/diagnosis.py [--rounds 8] [--cases fedavg loop] [--sides drift light full]

All sides run in this process on one thread and take turns, in reversed order every other time; a ratio is the
median over neighbouring rounds, with a 95 % bootstrap interval.

fedavg: ten devices, ten local steps of 32 images, every round evaluated on 1,000 images; loop: one step each
and no evaluation, where comparing updates weighs most.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from tempfile import TemporaryDirectory

import torch
from simulate import ENDLESS, SEED, WARMUP, alternate, load, machine, ratio

from edgewise import SGD, Config, Dataset, FedAvg, Labels, SyncSGD, run
from edgewise.data import Split
from edgewise.diagnosis import Diagnose, Full, Light, Off

TESTED = 1000
SIDES: dict[str, Diagnose] = {"off": Off(), "drift": Light(0.0), "light": Light(), "full": Full(20)}
CASES = {
    "fedavg": FedAvg(SGD(0.05), sync_every=10),
    "loop": SyncSGD(SGD(0.05)),
}


def config(case: str, side: str) -> Config:
    return Config(
        partition=Labels(2),
        width=16,
        algorithm=CASES[case],
        steps=ENDLESS,
        eval_every=int(case == "fedavg"),
        fused="off",
        diagnose=SIDES[side],
        accelerator="cpu",
        seed=SEED,
    )


def measure(case: str, names: Sequence[str], dataset: Dataset, rounds: int) -> str:
    with ExitStack() as stack:
        sides: dict[str, Callable[[], object]] = {}
        for side in ("off", *names):
            folder = stack.enter_context(TemporaryDirectory())
            play = run(config(case, side), folder, dataset=dataset, checkpoint_seconds=math.inf)
            sides[side] = stack.enter_context(closing(play)).__next__
        alternate(sides, WARMUP)
        seconds = alternate(sides, rounds)
    words = [f"{case}: off {1e3 * sorted(seconds['off'])[rounds // 2]:.0f} ms"]
    for side in names:
        middle, low, high = ratio(seconds[side], seconds["off"])
        words.append(f"{side} {middle:.3f} [{low:.3f}, {high:.3f}]")
    return "; ".join(words)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which (all)")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds of each side (8)")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES][1:], help="which (all; loop: drift)")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("rounds is at least 1")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    dataset = load()
    images = torch.randint(0, 256, (TESTED, 3, 32, 32), dtype=torch.uint8)
    dataset = replace(dataset, test=Split(images, torch.arange(TESTED) % 10))
    print(f"{machine()}; {dataset.name}, width 16, 10 devices x 32, {given.rounds} rounds")
    for case in given.cases:
        sides = given.sides or ([*SIDES][1:] if case == "fedavg" else ["drift"])
        print(measure(case, sides, dataset, given.rounds), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
