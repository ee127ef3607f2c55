"""What each codec costs: time, error and bytes, one line each.

    python benchmarks/codecs.py [--size 11170000] [--codecs int8 sign] [--rounds 7] [--json FILE]

Times are medians on one thread. Copying the vector as it is (memcpy) takes turns with each codec in the same
run, and shares are the copy's time over the codec's. `encode` and `decode` are of the codec alone, `with
feedback` is an encoding with error feedback around it. The error is ||x - decoded||^2 / ||x||^2 of a first
payload, for Gaussian values and for heavy tails (Student's t with three degrees of freedom).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from simulate import SEED, alternate, machine
from torch import Tensor

from edgewise.allocator import keep_freed_memory
from edgewise.codecs import CODECS, Codec, Feedback, Sending, parse, without_feedback
from edgewise.vector import Entry, Layout

TEXTS = (
    *("none", "none:zstd", "half", "half:bf16", "int8", "int8:zstd", "int4", "qsgd:8", "qsgd:4", "qsgd:2"),
    *("ternary", "ternary:nofeedback", "sign", "levels:1", "levels:2", "levels:4", "levels:1:rotate"),
    *("levels:1:rotate:nofeedback", "levels:4:rotate", "topk:0.01", "topk:0.001", "randomk:0.01", "stc:0.01"),
    *("dgc:0.001:0", "powersgd:4", "lowrank:0.01"),
)
SIZE = 11_170_000  # values: about ResNet18
SHAPES = ((512, 512, 3, 3), (64, 64, 3, 3))  # what its matrices are like, for codecs that look at shapes
FREEDOM = 3  # degrees, of the heavy tails


@dataclass(frozen=True)
class Cost:
    """Milliseconds, shares of memcpy, squared errors relative to the vector, bytes."""

    memcpy: float
    encode: float
    decode: float
    feedback: float | None
    gaussian: float
    heavy: float
    bytes: int
    ratio: float

    def line(self, text: str) -> str:
        fed = "" if self.feedback is None else f", with feedback {self.feedback:.1f} ms"
        return (
            f"{text}: encode {self.encode:.1f} ms ({self.memcpy / self.encode:.0%} of memcpy), "
            f"decode {self.decode:.1f} ms ({self.memcpy / self.decode:.0%}){fed}; "
            f"error {self.gaussian:.2g}, heavy tails {self.heavy:.2g}; "
            f"{self.bytes:,} bytes, 1/{self.ratio:.4g} of fp32"
        )


def layout(size: int) -> Layout:
    """As many of the large matrices as fit, then of the small ones, and a vector of what is left."""
    entries: list[Entry] = []
    start = 0
    for shape in SHAPES:
        count = torch.Size(shape).numel()
        while size - start >= count:
            entries.append(Entry(f"matrix{len(entries)}", shape, "weight", start))
            start += count
    if size > start:
        entries.append(Entry("rest", (size - start,), "weight", start))
    return Layout(tuple(entries), ())


def vectors(size: int) -> tuple[Tensor, Tensor]:
    draws = np.random.Generator(np.random.SFC64(SEED))
    heavy = draws.standard_t(FREEDOM, size).astype(np.float32)
    return torch.from_numpy(draws.standard_normal(size, np.float32)), torch.from_numpy(heavy)


def error(codec: Codec, vector: Tensor, where: Layout, sending: Sending) -> float:
    payload, _ = codec.encode(vector, where, {}, sending)
    lost = codec.decode(payload, where, vector.dtype).sub_(vector)
    return float(lost.double().square().sum() / vector.double().square().sum())


def measure(text: str, gaussian: Tensor, heavy: Tensor, rounds: int) -> Cost:
    whole, where, target = parse(text), layout(len(gaussian)), torch.empty_like(gaussian)
    codec = without_feedback(whole)
    sending = Sending(SEED, fed=isinstance(whole, Feedback))
    payload, memory = codec.encode(gaussian, where, {}, sending)
    sides: dict[str, Callable[[], object]] = {
        "memcpy": lambda: target.copy_(gaussian),
        "encode": lambda: codec.encode(gaussian, where, memory, sending),
        "decode": lambda: codec.decode(payload, where, gaussian.dtype),
    }
    if sending.fed:
        _, residual = whole.encode(gaussian, where, {}, sending)
        sides["feedback"] = lambda: whole.encode(gaussian, where, residual, sending)
    alternate(sides, 1)  # to warm up
    medians = {side: 1e3 * float(np.median(times)) for side, times in alternate(sides, rounds).items()}
    return Cost(
        medians["memcpy"],
        medians["encode"],
        medians["decode"],
        medians.get("feedback"),
        gaussian=error(codec, gaussian, where, sending),
        heavy=error(codec, heavy, where, sending),
        bytes=len(payload),
        ratio=4 * len(gaussian) / len(payload),
    )


def missing() -> list[str]:
    """The codecs that TEXTS leaves out."""
    return sorted(CODECS.keys() - {text.split(":")[0] for text in TEXTS})


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", nargs="+", metavar="CODEC", default=TEXTS, help="which, as text (all)")
    parser.add_argument("--size", type=int, default=SIZE, help=f"values in the vector ({SIZE:,})")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each codec (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    given = parser.parse_args(arguments)
    if min(given.size, given.rounds) < 1:
        parser.error("size and rounds are at least 1")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(arguments)
    if missing():
        print(f"no line for: {', '.join(missing())}; add one to TEXTS in {Path(__file__).name}")
        return 1
    torch.set_num_threads(1)
    keep_freed_memory()
    print(about := f"{machine()}; {given.size:,} values, {given.rounds} rounds")
    gaussian, heavy = vectors(given.size)
    costs: dict[str, Cost] = {}
    for text in given.codecs:
        costs[text] = measure(text, gaussian, heavy, given.rounds)
        print(costs[text].line(text), flush=True)
    if given.json:
        rows = {text: asdict(cost) for text, cost in costs.items()}
        given.json.write_text(json.dumps({"about": about, "codecs": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
