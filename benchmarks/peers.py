"""The same federated averaging in edgewise, in a loop by hand, and in other frameworks that are installed.

    pip install 'edgewise[peers]'        or in an environment of their own, and --peers its python
    python benchmarks/peers.py [--cases linear lenet] [--sides edgewise pfl flower] [--rounds 10] [--turns 3]

The cases are those of small_cases.py. A side plays in a process of its own with one thread (flower: with two
workers, as its simulation does by itself), and the sides take turns. Printed are the median round as a ratio
to that of the bare loop beside it, the CPU seconds of a whole process beside the bare one's, and how many
seconds after the bare loop's its first round was done. Peers are used as their own documentation does it:
pfl.FederatedAveraging on its SimulatedBackend, flwr's run_simulation with a NumPyClient and FedAvg.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
MODULES = {"bare": "edgewise", "edgewise": "edgewise", "pfl": "pfl", "flower": "flwr"}
PEERS = ("pfl", "flower")
WARM = 2  # rounds
Turns = dict[str, list[dict[str, Any] | None]]  # by side
LR = 0.01


class Clock:
    """When rounds end, in seconds from the start of the process."""

    def __init__(self, began: float) -> None:
        self.began, self.ends = began, list[float]()

    def tick(self) -> None:
        self.ends.append(time.time() - self.began)


# ---- ours ----


def bare(case: str, rounds: int, clock: Clock) -> None:
    import small

    for _ in small.Bare(case, small.CASES[case]).play(rounds):
        clock.tick()


def edgewise(case: str, rounds: int, clock: Clock) -> None:
    import small

    setup = small.CASES[case]
    with TemporaryDirectory() as folder:
        # One more round, which is not waited for: the last one evaluates.
        playing = small.edgewise(case, setup, folder, "auto", steps=(rounds + 1) * setup.steps)
        for _ in range(rounds):
            next(playing)
            clock.tick()
        playing.close()


# ---- theirs: they need torch, and nothing of edgewise ----


def sizes(case: str) -> Any:
    """What small_cases.py says of a case."""
    import small_cases

    return small_cases.CASES[case], small_cases.MODELS[case]


def examples(setup: Any) -> tuple[Any, Any]:
    """Images of noise, uint8 (examples, C, H, W) for each device, and labels."""
    import torch

    count = setup.devices * setup.examples
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *setup.shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return images.split(setup.examples), labels.split(setup.examples)


def pfl(case: str, rounds: int, clock: Clock) -> None:
    import torch
    import torch.nn.functional as F
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    setup, make = sizes(case)
    images, labels = examples(setup)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make(setup.shape, 10)

        def forward(self, x: Any) -> Any:
            return self.net(x)

        def loss(self, x: Any, y: Any, eval: bool = False) -> Any:
            return F.cross_entropy(self.net(x), y.long())

        def metrics(self, x: Any, y: Any, eval: bool = False) -> dict[str, Any]:
            return {}

    @cache  # of floats: 600 MB for 50,000 images, so that nothing is normalised again in each round
    def user(name: int) -> Any:
        x = images[name].float().div_(255).sub_(0.5).div_(0.25)
        return Dataset(raw_data=[x, labels[name]], user_id=str(name))

    class Timing(TrainingProcessCallback):  # type: ignore[misc, unused-ignore]
        def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> Any:
            clock.tick()
            return False, Metrics()

    net = Net()
    users = FederatedDataset(user, get_user_sampler("random", list(range(setup.devices))))
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, 10**9, setup.cohort, 0),
        SimulatedBackend(users, users),
        model,
        NNTrainHyperParams(setup.batch, None, LR, local_num_steps=setup.steps),
        callbacks=[Timing()],
    )


def flower(case: str, rounds: int, clock: Clock) -> None:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import Context, ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    setup, make = sizes(case)
    here = os.fspath(HERE)

    class Client(NumPyClient):  # type: ignore[misc, unused-ignore]
        def __init__(self, number: int) -> None:
            self.number = number

        def fit(self, parameters: Any, config: Any) -> Any:
            sys.path.insert(0, here)
            import peers

            torch.set_num_threads(1)
            net, images, labels = peers.kept(case)
            with torch.no_grad():
                for weight, value in zip(net.parameters(), parameters, strict=True):
                    weight.copy_(torch.from_numpy(np.asarray(value)))
            optimizer = torch.optim.SGD(net.parameters(), lr=LR)
            order = torch.randperm(setup.examples)
            for step in range(setup.steps):
                picked = order[torch.arange(step * setup.batch, (step + 1) * setup.batch) % setup.examples]
                x = images[self.number][picked].float().div_(255).sub_(0.5).div_(0.25)
                optimizer.zero_grad()
                F.cross_entropy(net(x), labels[self.number][picked]).backward()
                optimizer.step()
            return [weight.detach().numpy() for weight in net.parameters()], setup.steps * setup.batch, {}

    class Timed(FedAvg):  # type: ignore[misc, unused-ignore]
        def aggregate_fit(self, *given: Any) -> Any:
            found = super().aggregate_fit(*given)
            clock.tick()
            return found

    def serve(context: Context) -> Any:
        share = setup.cohort / setup.devices
        first = ndarrays_to_parameters([w.detach().numpy() for w in make(setup.shape, 10).parameters()])
        strategy = Timed(
            fraction_fit=share,
            fraction_evaluate=0.0,
            min_fit_clients=setup.cohort,
            min_available_clients=setup.devices,
            initial_parameters=first,
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    def client(context: Context) -> Any:
        return Client(int(context.node_config["partition-id"])).to_client()

    run_simulation(
        ServerApp(server_fn=serve),
        ClientApp(client_fn=client),
        num_supernodes=setup.devices,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )


_KEPT: dict[str, tuple[Any, Any, Any]] = {}


def kept(case: str) -> tuple[Any, Any, Any]:
    """A worker's model and the data, made once a process."""
    if case not in _KEPT:
        setup, make = sizes(case)
        _KEPT[case] = (make(setup.shape, 10), *examples(setup))
    return _KEPT[case]


SIDES: dict[str, Callable[[str, int, Clock], None]] = {
    "bare": bare,
    "edgewise": edgewise,
    "pfl": pfl,
    "flower": flower,
}
OTHERS = [side for side in SIDES if side != "bare"]


# ---- turns ----


def play(side: str, case: str, rounds: int, python: str) -> dict[str, Any] | None:
    """A side in a process of its own: when its rounds ended, and its CPU seconds; None if it failed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    command = [python, __file__, "--play", side, case, str(rounds), str(began)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ENDS ")]
    if done.returncode or not lines:
        word = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
        print(f"{case} {side}: failed: {word}", flush=True)
        return None
    ends = json.loads(lines[-1][5:])
    times = [later - earlier for earlier, later in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]
    cpu = sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    return {"first": ends[0], "times": times, "median": statistics.median(times), "cpu": cpu}


def has(module: str, python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec(module) is not None
    return not subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode


def compare(case: str, found: Turns) -> dict[str, Any]:
    """Medians over turns of what a side is to the bare loop of the same turn, where both played."""
    ratios: dict[str, Any] = {}
    for side, runs in found.items():
        pairs = [(own, other) for own, other in zip(runs, found["bare"], strict=True) if own and other]
        if side == "bare" or not pairs:
            continue
        ratios[side] = {
            "of_bare": statistics.median(own["median"] / other["median"] for own, other in pairs),
            "cpu_of_bare": statistics.median(own["cpu"] / other["cpu"] for own, other in pairs),
            "later_first": statistics.median(own["first"] - other["first"] for own, other in pairs),
        }
        print(
            f"{case} {side}: {1e3 * statistics.median(own['median'] for own, _ in pairs):.0f} ms a round, "
            + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in ratios[side].items()),
            flush=True,
        )
    return ratios


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    import small_cases

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=small_cases.CASES, default=["linear", "cnn", "lenet"])
    parser.add_argument("--sides", nargs="+", choices=OTHERS, default=OTHERS, help="beside the bare loop")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds of a process (10)")
    parser.add_argument("--turns", type=int, default=3, help="processes of each side (3)")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="where peers are installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too")
    given = parser.parse_args(arguments)
    if min(given.rounds, given.turns) < 1:
        parser.error("rounds and turns are at least 1")
    return given


def installed(sides: Sequence[str], peers: str) -> dict[str, str]:
    """The python of each side that can play."""
    found = {"bare": sys.executable}
    for side in sides:
        python = peers if side in PEERS else sys.executable
        if has(MODULES[side], python):
            found[side] = python
        else:
            print(f"{side}: skipped: {MODULES[side]} is not installed; pip install 'edgewise[peers]'")
    return found


def measure(case: str, pythons: dict[str, str], rounds: int, turns: int) -> Turns:
    """Each side's turns, in reversed order every other time; None for one in which it failed."""
    found: Turns = {side: [] for side in pythons}
    for turn in range(turns):
        for side in reversed(pythons) if turn % 2 else pythons:
            found[side].append(play(side, case, WARM + rounds, pythons[side]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--play"]:
        side, case, rounds, began = arguments[1:]
        clock = Clock(float(began))
        SIDES[side](case, int(rounds), clock)
        print("ENDS " + json.dumps(clock.ends), flush=True)
        return 0
    from simulate import machine

    given = options(arguments)
    print(about := f"{machine()}; {given.rounds} rounds, {given.turns} turns")
    pythons, results = installed(given.sides, given.peers), {}
    for case in given.cases:
        found = measure(case, pythons, given.rounds, given.turns)
        results[case] = {"ratios": compare(case, found), "runs": found}
    if given.json:
        given.json.write_text(json.dumps({"about": about, "cases": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
