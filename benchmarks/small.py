"""What a simulated round of many small devices costs, beside a bare PyTorch loop over them.

    python benchmarks/small.py [--cases linear cnn] [--rounds 20] [--json FILE]
    python benchmarks/small.py --check     is the work the same?

1,000 devices with 50 examples each, of which 50 take part in a round: federated averaging, one pass over
their data in batches of 10. (`lenet`: ten devices, ten steps of 32.) `edgewise` is `edgewise.run` as a user
calls it, diagnostics and records included, without evaluation and checkpoints; `apart` the same with
`--fused off`, device after device. `bare` is the loop below: channels-last, SGD with foreach, weights copied
at once. They take turns, a round each.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from simulate import CHECKED, ENDLESS, WARMUP, alternate, machine, ratio
from small_cases import CASES, MODELS, Setup
from torch import Tensor

from edgewise import SGD, Config, Dataset, FedAvg, Round, run
from edgewise.cohorts import cohort
from edgewise.data.batches import Augment, positions
from edgewise.models import build
from edgewise.models.norms import Group

SEED, LR = 0, 0.01
CLASSES = 10
SIDES = {"edgewise": "auto", "apart": "off"}  # and --fused


def pixels(setup: Setup) -> tuple[Tensor, Tensor]:
    """Images that are noise, since only time is measured, and labels."""
    generator = torch.Generator().manual_seed(SEED)
    count = setup.devices * setup.examples
    images = torch.randint(0, 256, (count, *setup.shape), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def noise(setup: Setup) -> tuple[Dataset, list[Tensor]]:
    """The data set, and which of it each device has."""
    images, labels = pixels(setup)
    dataset = Dataset.of("noise", train=(images, labels), test=(images[:10], labels[:10]))
    return dataset, list(torch.arange(len(images)).split(setup.examples))


def config(case: str, setup: Setup, fused: str, steps: int, exact: bool) -> Config:
    return Config(
        model=f"small_cases:{MODELS[case].__name__}",
        devices=setup.devices,
        cohort=setup.cohort,
        algorithm=FedAvg(SGD(LR, momentum=0, weight_decay=0), sync_every=setup.steps),
        batch=setup.batch,
        steps=steps,
        augment=Augment(),
        eval_every=0,
        accelerator="cpu",
        precision="fp64" if exact else "fp32",
        seed=SEED,
        fused=fused,
    )


def edgewise(
    case: str, setup: Setup, folder: str, fused: str, steps: int = ENDLESS, exact: bool = False
) -> Generator[Round]:
    dataset, dealt = noise(setup)
    settings = config(case, setup, fused, steps, exact)
    return run(settings, folder, dataset=dataset, dealt=dealt, checkpoint_seconds=math.inf)


class Bare:
    """The loop that one writes by hand to be fast, with the batches that edgewise has."""

    def __init__(self, case: str, setup: Setup, exact: bool = False) -> None:
        self.setup, self.config = setup, config(case, setup, "off", ENDLESS, exact)
        self.dataset, self.dealt = noise(setup)
        dtype = torch.float64 if exact else torch.float32
        moments = torch.tensor([self.dataset.mean, self.dataset.std], dtype=dtype)
        self.mean, self.std = 255 * moments[..., None, None]
        model = build(f"small_cases:{MODELS[case].__name__}", setup.shape, CLASSES, 4, Group(), SEED)
        self.model = model.to(dtype, memory_format=torch.channels_last)
        self.parameters = list(self.model.parameters())
        self.places = dict.fromkeys(range(setup.devices), 0)

    def play(self, rounds: int) -> Iterator[float]:
        weights, setup = [parameter.detach() for parameter in self.parameters], self.setup
        shared = [weight.clone() for weight in weights]
        for number in range(1, rounds + 1):
            total = [torch.zeros_like(weight) for weight in shared]
            for device in cohort(self.config, number):
                torch._foreach_copy_(weights, shared)
                optimizer = torch.optim.SGD(self.parameters, LR, foreach=True)
                held, place = self.dealt[device], self.places[device]
                order = held[positions(SEED, device, len(held), place, setup.steps * setup.batch)]
                self.places[device] += len(order)
                for picked in order.split(setup.batch):
                    loss = self.step(optimizer, picked)
                torch._foreach_add_(total, weights, alpha=1 / setup.cohort)
            torch._foreach_copy_(weights, total)
            shared = total
            yield float(loss)

    def step(self, optimizer: torch.optim.Optimizer, picked: Tensor) -> Tensor:
        images = torch.sub(self.dataset.train.images[picked], self.mean).div_(self.std)
        optimizer.zero_grad(set_to_none=True)
        answers = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(answers, self.dataset.train.labels[picked])
        loss.backward()
        optimizer.step()
        return loss.detach()


def check(case: str, setup: Setup) -> bool:
    """Whether the same batches lead all sides to the same weights, in float64."""
    bare = Bare(case, setup, exact=True)
    start = {name: tensor.clone() for name, tensor in bare.model.state_dict().items()}
    list(bare.play(CHECKED))
    apart = 0.0
    for fused in SIDES.values():
        with TemporaryDirectory() as folder:
            list(edgewise(case, setup, folder, fused, CHECKED * setup.steps, exact=True))
            ended = load_file(Path(folder, "model.safetensors"))
        for name, tensor in bare.model.state_dict().items():
            moved = (tensor - start[name]).abs().max()
            apart = max(apart, float((tensor - ended[name]).abs().max() / moved))
    found = "the same work" if apart <= 1e-9 else "DIFFERENT WORK"
    print(f"{case}: {found}: no weight differs by more than {apart:.1e} of what it moved", flush=True)
    return apart <= 1e-9


def measure(case: str, setup: Setup, rounds: int) -> dict[str, list[float]]:
    with ExitStack() as stack:
        sides = {"bare": Bare(case, setup).play(WARMUP + rounds).__next__}
        for name, fused in SIDES.items():
            folder = stack.enter_context(TemporaryDirectory())
            sides[name] = stack.enter_context(closing(edgewise(case, setup, folder, fused))).__next__
        alternate(sides, WARMUP)
        return alternate(sides, rounds)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which (all)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of each side (20)")
    parser.add_argument("--devices", type=int, help="number of devices (1000; lenet: 10)")
    parser.add_argument("--cohort", type=int, help="devices of a round (50; lenet: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's seconds here too")
    parser.add_argument("--check", action="store_true", help="compare the results, not the times")
    given = parser.parse_args(arguments)
    sizes = [sized(case, given) for case in given.cases]
    if given.rounds < 1 or not all(0 < setup.cohort <= setup.devices for setup in sizes):
        parser.error("rounds and cohort are at least 1, and a cohort has no more than all devices")
    return given


def sized(case: str, given: argparse.Namespace) -> Setup:
    setup = CASES[case]
    return replace(setup, devices=given.devices or setup.devices, cohort=given.cohort or setup.cohort)


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(arguments)
    torch.set_num_threads(1)
    print(about := f"{machine()}; {given.rounds} rounds")
    if given.check:
        return 0 if all([check(case, sized(case, given)) for case in given.cases]) else 1
    results = {}
    for case in given.cases:
        seconds = measure(case, sized(case, given), given.rounds)
        ratios = {side: ratio(seconds[side], seconds["bare"]) for side in SIDES}
        results[case] = {"ratios": ratios, "seconds": seconds}
        times = ", ".join(f"{side} {1e3 * float(np.median(took)):.1f} ms" for side, took in seconds.items())
        words = "; ".join(
            f"{side} {middle:.3f} [{low:.3f}, {high:.3f}] of bare"
            for side, (middle, low, high) in ratios.items()
        )
        print(f"{case}: {times}; {words}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"about": about, "cases": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
