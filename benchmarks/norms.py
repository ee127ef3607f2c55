"""What group norm costs with the sum and the ReLU after it: PyTorch's layers beside the compiled ones.

    python benchmarks/norms.py [--rounds 15] [--width 16] [--batch 64]

Needs Numba (`pip install 'edgewise[compiled]'`). On one thread, in turns: every shape of a ResNet18's layers,
forward and backward; then a step of the whole net, in fp32 and in bf16. Memory that is freed is kept, as
in a run. Ratios are medians over neighbouring turns.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from simulate import WARMUP, alternate, machine, ratio
from torch import Tensor, nn

from edgewise.allocator import keep_freed_memory
from edgewise.models import build
from edgewise.models.groupnorm import compile_norms, relu
from edgewise.models.norms import Batch, Group

CLASSES, SIDE = 10, 32
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def layer(norm: nn.Module, x: Tensor, added: Tensor, slope: Tensor) -> None:
    relu(norm, x, added).backward(slope)


def step(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()


def measure(sides: dict[str, Callable[[], object]], first: str, rounds: int) -> str:
    """Each side's median and its ratio to the first one's."""
    alternate(sides, WARMUP)
    seconds = alternate(sides, rounds)
    words = [f"{first} {1e3 * sorted(seconds[first])[rounds // 2]:.2f} ms"]
    for side in sides:
        if side != first:
            middle, low, high = ratio(seconds[side], seconds[first])
            words.append(f"{side} {middle:.3f} [{low:.3f}, {high:.3f}]")
    return ", ".join(words)


def layers(width: int, batch: int, rounds: int) -> None:
    for precision, dtype in TYPES.items():
        for stage in range(4):
            channels, side = width << stage, SIDE >> stage
            made = Group().layer(channels)
            fast = copy.deepcopy(made)
            compile_norms(fast)
            shape = (batch, channels, side, side)
            x, added = (draw(shape, dtype).requires_grad_() for _ in range(2))
            given = (x, added, draw(shape, dtype))
            sides: dict[str, Callable[[], object]] = {
                "torch": partial(layer, made, *given),
                "compiled": partial(layer, fast, *given),
            }
            words = measure(sides, "torch", rounds)
            print(f"{precision} {channels} x {side} x {side}: {words}", flush=True)


def steps(width: int, batch: int, rounds: int) -> None:
    images, labels = draw((batch, 3, SIDE, SIDE), torch.float32), torch.arange(batch) % CLASSES
    group, other = (
        build("resnet18", (3, SIDE, SIDE), CLASSES, width, norm, 0) for norm in (Group(), Batch())
    )
    fast = copy.deepcopy(group)
    compile_norms(fast)
    models = {"group": group, "compiled": fast, "batch": other}
    whole: dict[str, Callable[[], object]] = {
        f"{name} {precision}": partial(step, model, images, labels, precision == "bf16")
        for name, model in models.items()
        for precision in TYPES
    }
    print("a step:", measure(whole, "group fp32", rounds), flush=True)
    for name in ("compiled", "batch"):
        some = {f"{name} {precision}": whole[f"{name} {precision}"] for precision in TYPES}
        print("a step:", measure(some, f"{name} fp32", rounds), flush=True)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    setup = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{machine()}, width {setup.width}, {setup.batch} images, {setup.rounds} rounds")
    layers(setup.width, setup.batch, setup.rounds)
    steps(setup.width, setup.batch, setup.rounds)


if __name__ == "__main__":
    main()
