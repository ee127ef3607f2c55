"""Many light agents in one process, for load tests: the real protocol, with nothing trained behind it."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgewise.device import Memory
from edgewise.engines.fleet.agent import Agent
from edgewise.engines.fleet.descriptors import allow_connections
from edgewise.engines.fleet.duty import Duty, Idle, Outfit
from edgewise.engines.fleet.join import join_fleet, link
from edgewise.engines.fleet.keep import Pending
from edgewise.engines.fleet.link import Link
from edgewise.engines.fleet.token import Token
from edgewise.errors import EdgewiseError


class Light:
    """A memory that nobody misses."""

    blocks = False

    def __init__(self) -> None:
        self.round, self.memory = 0, Memory()
        self.pending: Pending | None = None

    def propose(self, round: int, digest: bytes, memory: Memory) -> None:
        self.pending = Pending(round, digest, memory)

    def commit(self) -> None:
        assert self.pending is not None
        self.round, self.memory, self.pending = self.pending.round, self.pending.memory, None

    def forget(self) -> None:
        self.pending = None


def run_load(count: int, tokens: Path, once: bool, equip: Callable[[Any], Outfit]) -> None:
    """Join with the first `count` tokens of a file, and serve until SIGTERM, or `once` until a run ends.

    `equip` gives the outfit that all of them share, from the coordinator's plan.
    """
    try:
        texts = tokens.read_text().split()
    except OSError as error:
        raise EdgewiseError(f"--tokens {tokens}: cannot be read ({error.strerror})") from None
    if len(texts) < count:
        raise EdgewiseError(
            f"--tokens {tokens}: holds {len(texts)} tokens, where --load {count} needs as many"
        )
    allow_connections(count)
    with tempfile.TemporaryDirectory(prefix="edgewise-load-") as folder:
        homes = [Path(folder) / str(number) for number in range(count)]
        for home, text in zip(homes, texts, strict=False):
            join_fleet(home, Token.parse(text), "load test")
        links = [link(home, None, None) for home in homes]
        with ThreadPoolExecutor(1, "work") as executor:
            asyncio.run(_serve(links, once, equip, executor))


async def _serve(
    links: Sequence[Link], once: bool, equip: Callable[[Any], Outfit], executor: ThreadPoolExecutor
) -> None:
    made: dict[bytes, Outfit] = {}

    def prepare(device: int) -> Callable[[Any], Duty]:
        def duty(plan: Any) -> Duty:
            key = plan.SerializeToString()
            if key not in made:
                made[key] = equip(plan)
            return Idle(made[key], device)

        return duty

    def remember(run: str) -> Light:
        return Light()

    agents = [Agent(one, prepare(one.device), remember, executor, once) for one in links]
    work = asyncio.gather(*(agent.run() for agent in agents))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        return
