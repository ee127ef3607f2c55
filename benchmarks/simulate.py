"""How long a simulated round takes, as a ratio to a bare PyTorch loop that does the same work.

    python benchmarks/simulate.py [--cases group fedavg] [--rounds 30] [--json FILE]
    python benchmarks/simulate.py --check     is the work the same?

Both sides run in this process on one thread and take turns, in reversed order every other time; a ratio is
the median over neighbouring rounds, with a 95 % bootstrap interval. The edgewise side is `edgewise.run` as a
user calls it, records included; only evaluation and checkpoints are left out. The bare side is `Bare` below,
fed as most people do (bare), with channels-last input (bare-cl), and so device after device, the gradients
added up (bare-devices: for sync-sgd, where the other two take one global batch).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from edgewise import SGD, Batch, BatchSync, Config, Dataset, FedAvg, Group, Round, SyncSGD, data, run
from edgewise.data import Split
from edgewise.data.batches import Augment, positions
from edgewise.data.partition import Iid, deal
from edgewise.models import build
from edgewise.models.norms import Norm

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
PADDING = 4  # pixels around an image before the random crop
SEED = 0
WARMUP = 2  # rounds
ENDLESS = 10**7  # steps; a timed run is closed long before
CHECKED = 4  # rounds; Fixup's branches start at zero: some weights get no gradient in the first two
BARE = {"bare": torch.contiguous_format, "bare-cl": torch.channels_last, "bare-devices": torch.channels_last}
APART = "bare-devices"

Stream = Iterator[Tensor]  # of batches: the indices of their examples
Seconds = dict[str, list[float]]  # by side, a number a round
Ratio = tuple[float, float, float]  # median, low and high end of its interval


@dataclass(frozen=True)
class Case:
    """What is compared. `differs`: where the work is not the same on both sides, how."""

    name: str
    norm: Norm = Group()
    model: str = "resnet18"
    algorithm: SyncSGD | FedAvg = SyncSGD(SGD(LR, MOMENTUM, WEIGHT_DECAY))
    differs: str = ""


CASES = (
    Case("group"),
    Case("batch-sync", BatchSync()),
    Case(
        "batch", Batch(), differs="edgewise takes statistics by device, bare and bare-cl over the whole batch"
    ),
    Case("fixup", model="fixup-resnet18"),
    Case("fedavg", algorithm=FedAvg(SGD(LR, MOMENTUM, WEIGHT_DECAY), sync_every=10)),
)


@dataclass(frozen=True)
class Setup:
    """What both sides share. `exact`: in float64 and without augmentation."""

    dataset: Dataset
    width: int = 16
    devices: int = 10
    batch: int = 32
    exact: bool = False


def load() -> Dataset:
    """CIFAR-10 where EDGEWISE_DATA is set, else noise of its shape; nearly nothing to test on."""
    if os.environ.get("EDGEWISE_DATA"):
        real = data.load("cifar10")
        return replace(real, test=Split(real.test.images[:10], real.test.labels[:10]))
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (50_000,))
    return Dataset.of("noise", train=(images, labels), test=(images[:10], labels[:10]))


def streams(case: Case, setup: Setup, rounds: int) -> list[Stream]:
    """The batches of so many rounds, dealt as edgewise does: of each device for fedavg, else global ones."""
    parts = deal(Iid(), setup.dataset.train, len(setup.dataset.classes), setup.devices, SEED)
    starts = range(0, rounds * case.algorithm.sync_every * setup.batch, setup.batch)
    devices = [
        [held[positions(SEED, device, len(held), start, setup.batch)] for start in starts]
        for device, held in enumerate(parts)
    ]
    if isinstance(case.algorithm, SyncSGD):
        devices = [[torch.cat(batches) for batches in zip(*devices, strict=True)]]
    return [iter(batches) for batches in devices]


def crop_and_flip(images: Tensor) -> Tensor:
    """Each uint8 image (N, C, H, W) cropped and mirrored by a draw of its own, in one gather."""
    size, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, size, 1))
    columns = torch.arange(width).expand(size, width)
    columns = torch.where(torch.rand(size, 1) < 0.5, width - 1 - columns, columns) + left
    rows = torch.arange(height) + top
    source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = source.view(size, 1, -1).expand(size, channels, -1)
    return padded.view(size, channels, -1).gather(2, index).view(images.shape)


class Bare:
    """The loop that one writes by hand to be fast. Which examples come when is chosen before it starts."""

    def __init__(self, case: Case, setup: Setup, side: str) -> None:
        self.case, self.setup, self.layout, self.train = case, setup, BARE[side], setup.dataset.train
        self.pieces = setup.devices if side == APART else 1
        dtype = torch.float64 if setup.exact else torch.float32
        moments = torch.tensor([setup.dataset.mean, setup.dataset.std], dtype=dtype)
        self.mean, self.std = 255 * moments[..., None, None]
        shape, classes = setup.dataset.shape, len(setup.dataset.classes)
        self.model = build(case.model, shape, classes, setup.width, case.norm, SEED).to(dtype)
        rates: dict[float, list[Tensor]] = {LR: [], LR / 10: []}
        for name, parameter in self.model.named_parameters():
            slow = case.model == "fixup-resnet18" and ("bias" in name or "scale" in name)
            rates[LR / 10 if slow else LR].append(parameter)
        groups = [{"params": parameters, "lr": rate} for rate, parameters in rates.items()]
        self.optimizer = torch.optim.SGD(groups, LR, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step(self, picked: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self.gradient(piece) for piece in picked.chunk(self.pieces)]
        self.optimizer.step()
        return sum(loss.item() for loss in losses)

    def gradient(self, picked: Tensor) -> Tensor:
        images, labels = self.train.images[picked], self.train.labels[picked]
        if not self.setup.exact:
            images = crop_and_flip(images)
        x = torch.sub(images, self.mean).div_(self.std).contiguous(memory_format=self.layout)
        loss = F.cross_entropy(self.model(x), labels) / self.pieces
        loss.backward()
        return loss.detach()

    def play(self, rounds: int) -> Iterator[float]:
        """The loss of every round; one of sync-sgd is a step of plain SGD on the global batch."""
        batches = streams(self.case, self.setup, rounds)
        if isinstance(self.case.algorithm, SyncSGD):
            return map(self.step, batches[0])
        return self.fedavg(batches, rounds, self.case.algorithm.sync_every)

    def fedavg(self, devices: Sequence[Stream], rounds: int, steps: int) -> Iterator[float]:
        """In a round each device takes `steps` steps from the same weights, which become their mean."""
        parameters = [parameter.detach() for parameter in self.model.parameters()]
        shared = [parameter.clone() for parameter in parameters]  # no case here has buffers
        for _ in range(rounds):
            total, losses = [torch.zeros_like(parameter) for parameter in shared], []
            for batches in devices:
                torch._foreach_copy_(parameters, shared)
                self.optimizer.state.clear()  # every device starts without momentum
                losses += [self.step(next(batches)) for _ in range(steps)]
                torch._foreach_add_(total, parameters, alpha=1 / len(devices))
            torch._foreach_copy_(parameters, total)
            shared = total
            yield sum(losses) / len(losses)


def bare_sides(case: Case) -> list[str]:
    """The loops that this is held to: devices come one after another in any loop of fedavg's."""
    synced = isinstance(case.norm, BatchSync)  # whose statistics cannot be had from one after another
    return [side for side in BARE if side != APART or (isinstance(case.algorithm, SyncSGD) and not synced)]


def edgewise(case: Case, setup: Setup, out: str, steps: int = ENDLESS) -> Generator[Round]:
    """The same through the package."""
    config = Config(
        data=setup.dataset.name,
        devices=setup.devices,
        model=case.model,
        width=setup.width,
        norm=case.norm,
        algorithm=case.algorithm,
        batch=setup.batch,
        steps=steps,
        augment=Augment() if setup.exact else Augment(PADDING, flip=True),
        eval_every=0,
        accelerator="cpu",
        precision="fp64" if setup.exact else "fp32",
        seed=SEED,
    )
    return run(config, out, dataset=setup.dataset, checkpoint_seconds=math.inf)


def check(case: Case, setup: Setup) -> bool:
    """Whether the same batches lead both sides to the same weights and buffers (fedavg: at K = 2).

    In float64: in float32 even the two bare loops part, where the last bit decides which way a ReLU goes.
    """
    setup, shares = replace(setup, exact=True), []
    if isinstance(case.algorithm, FedAvg):
        case = replace(case, algorithm=replace(case.algorithm, sync_every=2))
    with TemporaryDirectory() as folder:
        list(edgewise(case, setup, folder, CHECKED * case.algorithm.sync_every))
        ended = load_file(Path(folder, "model.safetensors"))
    for side in bare_sides(case):
        bare = Bare(case, setup, side)
        start = {name: tensor.clone() for name, tensor in bare.model.state_dict().items()}
        list(bare.play(CHECKED))
        for name, tensor in bare.model.state_dict().items():
            shares.append((tensor - ended[name]).abs().max() / (tensor - start[name]).abs().max())
    apart = float(torch.stack(shares).max())  # NaN, which proves nothing, if something did not move at all
    found = "the same work" if apart <= 1e-9 else "DIFFERENT WORK"
    print(f"{case.name}: {found}: no weight differs by more than {apart:.1e} of what it moved", flush=True)
    return apart <= 1e-9


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    """Play the sides in turn, in reversed order every other time."""
    seconds: Seconds = {name: [] for name in sides}
    for number in range(rounds):
        for name in reversed(sides) if number % 2 else sides:
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(case: Case, setup: Setup, rounds: int) -> Seconds:
    with TemporaryDirectory() as folder, closing(edgewise(case, setup, folder)) as ours:
        sides: dict[str, Callable[[], object]] = {"edgewise": ours.__next__}
        for name in bare_sides(case):
            sides[name] = Bare(case, setup, name).play(WARMUP + rounds).__next__
        alternate(sides, WARMUP)
        return alternate(sides, rounds)


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The median over neighbouring rounds, with a 95 % bootstrap interval."""
    values = np.divide(above, below)
    picks = np.random.default_rng(SEED).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def line(case: Case, seconds: Seconds, ratios: dict[str, Ratio]) -> str:
    medians = {side: float(np.median(seconds[side])) for side in seconds}
    text = ", ".join(f"{side} {1e3 * median:.1f} ms" for side, median in medians.items())
    for name, (middle, low, high) in ratios.items():
        text += f"; {middle:.3f} [{low:.3f}, {high:.3f}] of {name}"
        text += " (the faster)" * (medians[name] == min(medians[other] for other in ratios))
    return f"{case.name}: {text}" + f"; the work differs: {case.differs}" * bool(case.differs)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=every, default=every, help="which (all)")
    parser.add_argument("--width", type=int, default=16, help="channels of the model's first stage (16)")
    parser.add_argument("--devices", type=int, default=10, help="number of devices (10)")
    parser.add_argument("--batch", type=int, default=32, help="examples a device takes a step (32)")
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds of each side (12)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's seconds here too")
    parser.add_argument("--check", action="store_true", help="compare the results, not the times")
    given = parser.parse_args(arguments)
    if min(given.width, given.devices, given.batch, given.rounds) < 1:
        parser.error("width, devices, batch and rounds are at least 1")
    return given


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = [*re.findall(r"model name\s*: (.*)", info), platform.machine()][0]
    cpu += f", {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}"
    software = f"torch {torch.__version__}, threads: {torch.get_num_threads()}"
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}; {cpu}; {software}"


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    setup = Setup(load(), given.width, given.devices, given.batch)
    sizes = f"width {given.width}, {given.devices} devices x {given.batch}, {given.rounds} rounds"
    print(about := f"{machine()}; {setup.dataset.name}, {sizes}")
    cases = [case for case in CASES if case.name in given.cases]
    if given.check:
        return 0 if all([check(case, setup) for case in cases if not case.differs]) else 1
    results = {}
    for case in cases:
        seconds = measure(case, setup, given.rounds)
        ratios = {name: ratio(seconds["edgewise"], seconds[name]) for name in bare_sides(case)}
        results[case.name] = {"ratios": ratios, "seconds": seconds}
        print(line(case, seconds, ratios), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"about": about, "cases": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
