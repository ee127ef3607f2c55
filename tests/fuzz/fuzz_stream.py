"""Fuzz the stream: whatever a peer says, in whatever order, the other end answers, or sends it away.

    python tests/fuzz/fuzz_stream.py --end coordinator --inputs 50000 --seed 0
    python tests/fuzz/fuzz_stream.py --end agent --inputs 50000 --seed 0
    python tests/fuzz/fuzz_stream.py --end agent --inputs 1 --seed 0 --first 42    one of them again

An input is a conversation: as it should be, with up to four of its messages changed (bits, lengths, numbers
in fields), doubled, moved, left out, or others between them. The session, journal, spool and screen of the
coordinator are real, as are the agent, its training and its memory; for gRPC there is a list of messages.

For every input: nothing escapes, and no task of the event loop ends with an error; it takes less than a
second of the processor, and does not wait for ever; what counts lies whole in the spool and in the journal,
once; a device takes up no more than one update; an agent's memory moves on only where the coordinator said
so, and no file appears elsewhere. The whole runs under a limit on the address space.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_decoders import SECONDS, confine
from fuzz_memory import measured
from stream_ends import AgentEnd, CoordinatorEnd, Finding, Parts

ENDS: dict[str, Any] = {"coordinator": CoordinatorEnd, "agent": AgentEnd}
WAIT = 30.0  # seconds after which a conversation is one without end
MEMORY = 16 << 20  # bytes that one may take


@dataclass
class Tally:
    """What became of the conversations."""

    played: int = 0
    slowest: float = 0.0  # seconds of the processor
    most: int = 0  # bytes
    counts: Counter[str] = field(default_factory=Counter)


async def _play(end: Any, tally: Tally, seed: int, first: int, count: int, measure: int) -> None:
    loop, faults = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    for index in range(first, first + count):
        rng, taken = Random(seed << 40 | index), list[int]()
        began = time.process_time()
        try:
            async with asyncio.timeout(WAIT) as limit:
                if index % measure == 0:
                    with measured(taken):
                        await end.play(rng, index)
                else:
                    await end.play(rng, index)
            if limit.expired():  # what was cancelled need not have said so
                raise Finding(f"no end in {WAIT:g} s")
            if faults:
                raise Finding(f"a task has failed: {faults[0]}") from faults[0].get("exception")
            seconds = 0.0 if taken else time.process_time() - began
            if seconds > SECONDS or (taken and taken[0] > MEMORY):
                raise Finding(f"{seconds:.1f} s and {taken} bytes for one conversation")
        except BaseException:
            print(f"--inputs 1 --seed {seed} --first {index}", flush=True)
            raise
        tally.played += 1
        tally.slowest, tally.most = max(tally.slowest, seconds), max([tally.most, *taken])
        if tally.played % 10_000 == 0:
            print(f"{tally.played:,} conversations", file=sys.stderr, flush=True)


def run(end: str, count: int, seed: int, first: int = 0, measure: int = 100) -> Tally:
    """`count` conversations; every one has an address, (seed, index)."""
    tally = Tally()
    logger = logging.getLogger("edgewise")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        made = ENDS[end](Parts(Path(folder)), Path(folder))
        try:
            asyncio.run(_play(made, tally, seed, first, count, measure))
        finally:
            made.close()
            logger.setLevel(before)
    tally.counts = made.counts
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the stream.", allow_abbrev=False)
    parser.add_argument("--end", choices=ENDS, required=True, help="who is talked to")
    parser.add_argument("--inputs", type=int, default=1000, help="how many conversations (default: 1,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--measure", type=int, default=100, help="measure memory at every so many-th")
    options = parser.parse_args()
    torch.set_num_threads(1)
    confine()
    began = time.perf_counter()
    tally = run(options.end, options.inputs, options.seed, options.first, options.measure)
    seconds = time.perf_counter() - began
    print(f"{tally.played:,} conversations with the {options.end} in {seconds:,.0f} s, no finding")
    for what, count in tally.counts.most_common():
        print(f"{count:>12,}  {what}")
    print(f"slowest: {1000 * tally.slowest:.0f} ms; memory of one: {tally.most / 1024:,.0f} KiB at most")
    print(f"the whole: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB at its largest")


if __name__ == "__main__":
    main()
