"""What a run over two processes costs, beside two bare PyTorch processes that share the same work by hand.

    python benchmarks/ranks.py [--cases lenet resnet18] [--rounds 20] [--turns 3] [--json FILE]
    python benchmarks/ranks.py --check        is the work the same?

Federated averaging in two processes of one thread each. `bare`: a loop by hand in each, over half of the
devices (channels-last input, foreach SGD, weights copied in place), and one all-reduce a round; `apart`: the
same without a word between the processes, the most that two can do. `edgewise` is the command as a user types
it with `--processes 2`, `auto` with as many as it chooses; evaluation is left out. The sides take turns, in
reversed order every other time. A round lasts from the last one's line of records to its own, seen from
outside; the first takes all that comes before it. CPU seconds are a whole run's, of all its processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # for processes that import this file by its name
from simulate import LR, MOMENTUM, SEED, load, machine

from edgewise import Dataset
from edgewise.data.batches import positions
from edgewise.data.partition import Iid, deal
from edgewise.models import build
from edgewise.models.norms import Group

RANKS = 2
LINES, MODEL = "rounds.jsonl", "model.safetensors"
MODELS = {"lenet": "ranks:lenet", "resnet18": "resnet18"}
ASKED = {"wall": {"lenet": 1.03, "resnet18": 1 / 0.95}, "cpu": {"lenet": 1.0}, "first": {"lenet": 1.5}}
SIDES = ("edgewise", "auto", "bare", "apart")


@dataclass(frozen=True)
class Setup:
    """What all sides share."""

    model: str = "lenet"
    width: int = 16
    devices: int = 10
    batch: int = 32
    steps: int = 10
    rounds: int = 20
    exact: bool = False  # in float64


@dataclass(frozen=True)
class Played:
    """One run: seconds until the first round was done, of each further one, and of all processors."""

    first: float
    rounds: list[float]
    cpu: float


def examples(folder: Path | None = None) -> Dataset:
    """The same for every process: CIFAR-10 where EDGEWISE_DATA is set, else noise of its shape."""
    torch.manual_seed(SEED)
    return load()


def lenet(shape: Sequence[int], classes: int) -> nn.Module:
    """62,006 parameters on images of 3 x 32 x 32 and ten classes."""
    side = ((shape[1] - 4) // 2 - 4) // 2
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * side * side, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


# ---- by hand ----


class Bare:
    """One of two processes, and its half of the devices."""

    def __init__(self, rank: int, setup: Setup) -> None:
        self.rank, self.setup = rank, setup
        dataset = examples()
        dtype = torch.float64 if setup.exact else torch.float32
        self.train, classes = dataset.train, len(dataset.classes)
        moments = torch.tensor([dataset.mean, dataset.std], dtype=dtype)
        self.mean, self.std = 255 * moments[..., None, None]
        self.dealt = deal(Iid(), self.train, classes, setup.devices, SEED)
        kind = MODELS[setup.model]
        self.model = build(kind, dataset.shape, classes, setup.width, Group(), SEED).to(dtype)
        self.parameters = [parameter.detach() for parameter in self.model.parameters()]
        self.shared = [parameter.clone() for parameter in self.parameters]
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR / 10, MOMENTUM, foreach=True)

    def round(self, number: int, together: bool) -> None:
        """Its devices one after another from the same weights; their mean, with the other half's."""
        total = [torch.zeros_like(parameter) for parameter in self.shared]
        for device in range(self.rank, self.setup.devices, RANKS):
            torch._foreach_copy_(self.parameters, self.shared)
            self.optimizer.state.clear()  # every device starts without momentum
            for step in range(number * self.setup.steps, (number + 1) * self.setup.steps):
                self.step(self.dealt[device], device, step)
            torch._foreach_add_(total, self.parameters, alpha=1 / self.setup.devices)
        if together:
            flat = torch.cat([tensor.view(-1) for tensor in total])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in total])
            total = [part.view_as(tensor) for part, tensor in zip(parts, total, strict=True)]
        self.shared = total

    def step(self, held: Tensor, device: int, step: int) -> None:
        size = self.setup.batch
        picked = held[positions(SEED, device, len(held), step * size, size)]
        x = torch.sub(self.train.images[picked], self.mean).div_(self.std)
        self.optimizer.zero_grad(set_to_none=True)
        outputs = self.model(x.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(outputs, self.train.labels[picked]).backward()
        self.optimizer.step()


def bare(rank: int, together: bool, setup: Setup, folder: Path) -> None:
    """Play all rounds; rank 0 writes a line a round, and the model."""
    torch.set_num_threads(1)
    if together:
        meet = dist.FileStore(str(folder / "meet"), RANKS)
        dist.init_process_group(
            "gloo", store=meet, rank=rank, world_size=RANKS, timeout=timedelta(minutes=10)
        )
    loop = Bare(rank, setup)
    with (folder / LINES if rank == 0 else Path(os.devnull)).open("a") as lines:
        for number in range(setup.rounds):
            loop.round(number, together)
            print(json.dumps({"round": number + 1}), file=lines, flush=True)
    torch._foreach_copy_(loop.parameters, loop.shared)
    if rank == 0:
        tensors = loop.model.state_dict().items()
        save_file({name: tensor.contiguous() for name, tensor in tensors}, folder / MODEL)
    if together:
        dist.destroy_process_group()


# ---- side by side ----


def commands(side: str, setup: Setup, folder: Path) -> list[list[str]]:
    """What is started for a run of a side."""
    if side in ("bare", "apart"):
        told = json.dumps({"together": side == "bare", "setup": asdict(setup), "folder": str(folder)})
        return [[sys.executable, __file__, "--bare", str(rank), told] for rank in range(RANKS)]
    words = {
        **{"data": "ranks:examples", "devices": setup.devices, "model": MODELS[setup.model]},
        **{"width": setup.width, "norm": "group", "algorithm": "fedavg", "sync-every": setup.steps},
        **{"batch": setup.batch, "lr": LR / 10, "momentum": MOMENTUM, "weight-decay": 0},
        **{"steps": setup.steps * setup.rounds, "augment": "none", "eval-every": 0, "seed": SEED},
        **{"accelerator": "cpu", "precision": "fp64" if setup.exact else "fp32", "out": folder},
        **{"processes": "auto" if side == "auto" else RANKS, "checkpoint-seconds": 1e6},
    }
    flags = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    return [[sys.executable, "-m", "edgewise", "run", *flags]]


def play(side: str, setup: Setup, folder: Path) -> Played:
    """One run from its start to its end, watched from outside."""
    paths = os.pathsep.join([str(Path(__file__).parent), *(path for path in sys.path if path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    began, seen = time.perf_counter(), list[float]()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        running = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            for command in commands(side, setup, folder)
        ]
        while len(seen) < setup.rounds:
            found = (folder / LINES).read_bytes().count(b"\n") if (folder / LINES).exists() else 0
            seen += [time.perf_counter() - began] * (found - len(seen))
            if any(process.poll() for process in running):
                break
            time.sleep(0.003)
        cpu = 0.0
        for process in running:
            if process.returncode is None:  # `poll` would have taken what it used
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu += used.ru_utime + used.ru_stime
    if any(process.returncode for process in running):
        raise SystemExit(f"{side}: {(folder / 'log').read_text()[-2000:]}")
    return Played(seen[0], np.diff(seen).tolist(), cpu)


def measure(sides: Sequence[str], setup: Setup, turns: int, folder: Path) -> dict[str, list[Played]]:
    played: dict[str, list[Played]] = {side: [] for side in sides}
    for turn in range(turns):
        for side in reversed(sides) if turn % 2 else sides:
            played[side].append(play(side, setup, folder / f"{side}-{turn}"))
    return played


def check(setup: Setup, folder: Path) -> bool:
    """Whether both sides come to the same weights, in float64."""
    setup = replace(setup, exact=True, rounds=3, steps=min(setup.steps, 3))
    ends: dict[str, dict[str, Tensor]] = {}
    for side in ("edgewise", "bare"):
        play(side, setup, folder / side)
        ends[side] = load_file(folder / side / MODEL)
    apart = max(float((ends["edgewise"][n] - tensor).abs().max()) for n, tensor in ends["bare"].items())
    found = "the same work" if apart <= 1e-9 else "DIFFERENT WORK"
    print(f"{setup.model}: {found}: no weight differs by more than {apart:.1e}", flush=True)
    return apart <= 1e-9


def summary(played: dict[str, list[Played]]) -> dict[str, dict[str, float]]:
    """Of each side: the median round, first round and CPU seconds, in seconds, and as ratios to `bare`."""
    found = {}
    for side, runs in played.items():
        wall = float(np.median([np.median(run.rounds) for run in runs]))
        first, cpu = (float(np.median([getattr(run, name) for run in runs])) for name in ("first", "cpu"))
        found[side] = {"round": wall, "first": first, "cpu": cpu}
    if "bare" in played:
        for side, runs in played.items():
            pairs = list(zip(runs, played["bare"], strict=True))  # neighbours in time
            walls = [np.median(one.rounds) / np.median(two.rounds) for one, two in pairs]
            found[side]["of bare"] = float(np.median(walls))
            found[side]["cpu of bare"] = float(np.median([one.cpu / two.cpu for one, two in pairs]))
            found[side]["later first"] = float(np.median([one.first - two.first for one, two in pairs]))
    return found


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=MODELS, default=[*MODELS], help="which (all)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES], help="which (all)")
    for name, least in (
        ("width", 16),
        ("devices", 10),
        ("batch", 32),
        ("steps", 10),
        ("rounds", 20),
        ("turns", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=least, help=f"({least})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's seconds here too")
    parser.add_argument("--check", action="store_true", help="compare the results, not the times")
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if min(given.width, given.devices, given.batch, given.steps, given.turns, given.rounds - 1) < 1:
        parser.error("width, devices, batch, steps and turns are at least 1, rounds 2")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(arguments)
    if given.bare:
        told = json.loads(given.bare[1])
        bare(int(given.bare[0]), told["together"], Setup(**told["setup"]), Path(told["folder"]))
        return 0
    sizes = {name: getattr(given, name) for name in ("width", "devices", "batch", "steps", "rounds")}
    print(about := f"{machine()}; {sizes}, {given.turns} turns")
    results, same = {}, True
    for case in given.cases:
        setup = Setup(model=case, **sizes)
        with tempfile.TemporaryDirectory() as folder:
            if given.check:
                same &= check(setup, Path(folder))
                continue
            played = measure(given.sides, setup, given.turns, Path(folder))
        found = summary(played)
        for side, numbers in found.items():
            words = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            print(f"{case} {side}: {words}", flush=True)
        print(
            f"{case} asked, at most: "
            + ", ".join(f"{k} {v[case]:.3f}" for k, v in ASKED.items() if case in v)
        )
        runs = {side: [asdict(one) for one in each] for side, each in played.items()}
        results[case] = {"summary": found, "runs": runs}
    if given.json:
        given.json.write_text(json.dumps({"about": about, "cases": results}, indent=2) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
