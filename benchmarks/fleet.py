"""What the fleet's engine costs: the latency of a round, its throughput, and what an idle agent takes.

    python benchmarks/fleet.py [latency] [throughput] [load] [--json FILE]

The coordinator is `edgewise coordinator run` as a user calls it (TLS, journal, spool, checkpoints); its
agents are `edgewise agent --load N`, which speak the whole protocol and train nothing. Times are those
between the openings of two rounds in the coordinator's journal, so nothing of a round is left out.
Throughput stands beside a plain gRPC stream that moves the same bytes between two processes, with the same
certificates, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from torch import nn

from edgewise.engines.fleet.certificates import COORDINATOR
from edgewise.engines.fleet.identity import Authority, Identity

HERE = Path(__file__).parent
EDGEWISE = (sys.executable, "-m", "edgewise")
CHUNK = 1 << 20
BIG = 11_173_962 * 4  # bytes of ResNet18's parameters
SETTLED = 30.0  # seconds after the last agent has connected: three beats
WARM = 5  # rounds and turns that do not count


def lenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5 as it is used for 32x32 images; 61,706 parameters on one channel padded from 8x8."""
    return nn.Sequential(
        nn.Upsample(size=(28, 28)),
        *(nn.Conv2d(shape[0], 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


# ---- a fleet ----


@contextmanager
def fleet(folder: Path, agents: int, *settings: str) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A coordinator with so many light agents, until its run ends; its home and its process."""
    home, environment = folder / "home", {**os.environ, "OMP_NUM_THREADS": "1"}
    edgewise = (*EDGEWISE, "coordinator")
    subprocess.run(
        [*edgewise, "init", home, "--address", "127.0.0.1", "--port", str(free_port())], check=True, stdout=2
    )
    tokens = subprocess.run(
        [*edgewise, "invite", home, "--count", str(agents)], check=True, capture_output=True
    )
    (folder / "tokens").write_bytes(tokens.stdout)
    log = (folder / "log").open("wb")
    run = [*edgewise, "run", home, "--devices", str(agents), "--eval-every", "0", "--log", folder / "events"]
    coordinator = subprocess.Popen([*run, *settings], cwd=HERE, env=environment, stdout=log, stderr=log)
    wait_for(lambda: (home / "control.sock").exists(), coordinator, folder)
    load = [*EDGEWISE, "agent", "--load", str(agents), "--tokens", folder / "tokens", "--once"]
    devices = subprocess.Popen(
        [*load, "--allow", "fleet:lenet"], cwd=HERE, env=environment, stdout=log, stderr=log
    )
    try:
        yield home, coordinator
    finally:
        for process in (devices, coordinator):
            process.send_signal(signal.SIGTERM)
        for process in (devices, coordinator):
            process.wait(60)
        log.close()


def free_port() -> int:
    """A port that is free, as is the next one, below those that the system gives to connections."""
    while True:
        port = random.randrange(10_000, 30_000)
        try:
            for number in (port, port + 1):
                with socket.socket() as one:
                    one.bind(("", number))
        except OSError:
            continue
        return port


def wait_for(condition: Any, process: subprocess.Popen[bytes], folder: Path, seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the coordinator did not come so far:\n{(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.05)


def openings(home: Path) -> list[float]:
    """When the rounds were opened, in seconds."""
    with sqlite3.connect(f"file:{home / 'journal.sqlite'}?mode=ro", uri=True) as journal:
        return [row[0] for row in journal.execute("SELECT opened FROM rounds ORDER BY number")]


def rounds_of(home: Path) -> list[float]:
    """Seconds from the opening of each round to that of the next, the first ones left out."""
    times = openings(home)[WARM:]
    return [later - earlier for earlier, later in pairwise(times)]


def status(home: Path) -> dict[str, Any]:
    found = subprocess.run(
        [*EDGEWISE, "coordinator", "status", home, "--json"], check=True, capture_output=True
    )
    return dict(json.loads(found.stdout))


def resident(process: subprocess.Popen[bytes], what: str = "VmRSS") -> int:
    """Bytes of memory that a process has in RAM."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) * 1024


# ---- the three questions ----


def latency(folder: Path, rounds: int = 300) -> dict[str, Any]:
    """Ten agents, a model of 62,000 parameters, nothing trained."""
    floor = fsync_floor(folder)
    settings = ("--model", "fleet:lenet", "--batch", "4", "--steps", str(rounds), "--data", "digits")
    with fleet(folder, 10, *settings) as (home, coordinator):
        wait_for(lambda: len(openings(home)) >= rounds, coordinator, folder)
        found = sorted(rounds_of(home))
    return {
        "rounds": len(found),
        "median_ms": statistics.median(found) * 1e3,
        "p99_ms": found[int(0.99 * len(found))] * 1e3,
        "fsync_ms": floor * 1e3,
    }


def fsync_floor(folder: Path) -> float:
    """The median time that the disk takes to make 4 KiB last."""
    times = []
    with (folder / "floor").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def throughput(folder: Path, rounds: int = 12, turns: int = 3) -> dict[str, Any]:
    """Four agents, 11.17 M parameters, nothing trained, beside a plain stream of the same bytes."""
    ours: list[float] = []
    plain: dict[str, list[float]] = {"tls": [], "bare": []}
    peak = 0
    for turn in range(turns):
        own = folder / str(turn)
        own.mkdir()
        for kind, times in plain.items():
            times += plain_stream(own, 4, rounds, tls=kind == "tls")
        settings = ("--width", "64", "--batch", "1", "--steps", str(rounds + WARM + 1), "--data", "digits")
        with fleet(own, 4, *settings, "--checkpoint-seconds", "1000") as (home, coordinator):
            wait_for(lambda: len(openings(home)) >= rounds + WARM + 1, coordinator, own)
            peak = max(peak, resident(coordinator, "VmHWM"))
            ours += rounds_of(home)
    moved = 2 * 4 * BIG / 1e6
    seconds = statistics.median(ours)
    return {
        "round_s": seconds,
        "MB_per_s": moved / seconds,
        **{f"plain_{kind}_s": statistics.median(times) for kind, times in plain.items()},
        "of_plain_tls": statistics.median(plain["tls"]) / seconds,
        "of_plain_bare": statistics.median(plain["bare"]) / seconds,
        "coordinator_peak_MB": peak / 1e6,
    }


def load(folder: Path) -> dict[str, Any]:
    """A round over 1,000 agents; memory of the coordinator for each of 2,000 that are connected and idle."""
    found: dict[str, Any] = {}
    own = folder / "thousand"
    own.mkdir()
    rounds = 8
    settings = ("--width", "4", "--batch", "1", "--steps", str(rounds), "--data", "digits")
    with fleet(own, 1000, *settings) as (home, coordinator):
        wait_for(lambda: len(openings(home)) >= rounds, coordinator, own, 900)
        times = openings(home)
        found["thousand_round_s"] = statistics.median(b - a for a, b in pairwise(times[1:]))
        found["thousand_peak_MB"] = resident(coordinator, "VmHWM") / 1e6
    few, many = (idle(folder / f"idle-{agents}", agents) for agents in (100, 2000))
    found["idle_KB"] = (many - few) / 1900 / 1e3
    return found


def idle(folder: Path, agents: int) -> int:
    """Bytes of memory of a coordinator to which so many agents are connected, none of them with a task."""
    folder.mkdir()
    # A round of all and one more, who never comes: it is not opened without it, and nobody is asked.
    settings = ("--width", "4", "--batch", "1", "--steps", "1", "--data", "digits", "--quorum", "0.999999")
    with fleet(folder, agents, *settings, "--devices", str(agents + 1)) as (home, coordinator):
        wait_for(lambda: status(home)["connected"] >= agents, coordinator, folder, 900)
        time.sleep(SETTLED)
        return resident(coordinator)


# ---- a plain stream ----


def plain_stream(folder: Path, clients: int, rounds: int, tls: bool) -> list[float]:
    """Seconds for each round in which every client is sent BIG bytes and sends as many back."""
    port = free_port()
    certificates = folder / f"plain-{tls}"
    serving = subprocess.Popen(
        [
            sys.executable,
            __file__,
            "--serve",
            str(port),
            str(clients),
            str(rounds),
            str(certificates),
            str(tls),
        ],
        stdout=subprocess.PIPE,
    )
    assert serving.stdout is not None
    serving.stdout.readline()
    asking = subprocess.Popen(
        [sys.executable, __file__, "--ask", str(port), str(clients), str(certificates), str(tls)]
    )
    found = json.loads(serving.stdout.read())
    asking.wait(60)
    serving.wait(60)
    return [float(seconds) for seconds in found][1:]


async def exchange(context: Any) -> None:
    """BIG bytes down and up again."""
    chunk, got = bytes(CHUNK), 0
    for start in range(0, BIG, CHUNK):
        await context.write(chunk[: BIG - start])
    while got < BIG:
        got += len(await context.read())


async def serve(port: int, clients: int, rounds: int, folder: Path, tls: bool) -> None:
    here, ended, times, contexts = asyncio.Event(), asyncio.Event(), list[float](), list[Any]()

    async def work(_: Any, context: Any) -> None:
        contexts.append(context)
        if len(contexts) == clients:
            here.set()
        await ended.wait()

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    method = {"Work": grpc.stream_stream_rpc_method_handler(work)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plain", method),))
    if tls:
        server.add_secure_port(f"127.0.0.1:{port}", credentials_in(folder))
    else:
        server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await here.wait()
    for _ in range(rounds):
        began = time.perf_counter()
        await asyncio.gather(*(exchange(context) for context in contexts))
        times.append(time.perf_counter() - began)
    ended.set()
    await server.stop(1)
    print(json.dumps(times), flush=True)


def credentials_in(folder: Path) -> Any:
    """A server's credentials, of an authority that has signed a device's too."""
    authority = Authority.create(folder / "ca")
    identity = Identity(folder / "device")
    identity.accept(authority.sign(identity.request(), 0), authority.ca)
    own = authority.serve_as()
    return grpc.ssl_server_credentials([(own.key, own.chain)], own.ca, True)


async def ask(port: int, clients: int, folder: Path, tls: bool) -> None:
    async def one() -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        if tls:
            _, own = Identity(folder / "device").load()
            credentials = grpc.ssl_channel_credentials(own.ca, own.key, own.chain)
            options.append(("grpc.ssl_target_name_override", COORDINATOR))
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
        else:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        async with channel:
            call = channel.stream_stream("/plain/Work")()
            chunk, got = bytes(CHUNK), 0
            while (data := await call.read()) is not grpc.aio.EOF:
                got += len(data)
                if got == BIG:
                    got = 0
                    for start in range(0, BIG, CHUNK):
                        await call.write(chunk[: BIG - start])

    await asyncio.gather(*(one() for _ in range(clients)))


CASES = {"latency": latency, "throughput": throughput, "load": load}


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        port, clients, rounds, folder, tls = sys.argv[2:]
        asyncio.run(serve(int(port), int(clients), int(rounds), Path(folder), tls == "True"))
        return
    if sys.argv[1:2] == ["--ask"]:
        port, clients, folder, tls = sys.argv[2:]
        asyncio.run(ask(int(port), int(clients), Path(folder), tls == "True"))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which  [all]")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    asked = parser.parse_args()
    head = {
        "date": datetime.now().isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "grpc": grpc.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in head.items()))
    results: dict[str, Any] = dict(head)
    for name in asked.cases or CASES:
        with TemporaryDirectory(prefix="edgewise-fleet-") as folder:
            results[name] = CASES[name](Path(folder))
        shown = "  ".join(f"{key} {value:.4g}" for key, value in results[name].items())
        print(f"{name:<11} {shown}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
