"""What the tests of every codec are run on: a row for each codec, and vectors of many kinds."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from edgewise.codecs import CODECS, Codec, Feedback, Memory, Sending, inner, parse
from edgewise.vector import Layout

# A codec's first text is its plain form; the others take other paths through its file.
TEXTS: dict[str, list[str]] = {
    "none": ["none"],
    "half": ["half", "half:bf16"],
    "int8": ["int8"],
    "int4": ["int4"],
    "qsgd": ["qsgd:4", "qsgd:2", "qsgd:8"],
    "ternary": ["ternary"],
    "sign": ["sign"],
    "levels": ["levels:1", "levels:2", "levels:4", "levels:1:rotate", "levels:4:rotate"],
    "topk": ["topk:0.01", "topk:0.2:16", "topk:0.2:8"],
    "randomk": ["randomk:0.01", "randomk:0.2"],
    "stc": ["stc:0.01"],
    "dgc": ["dgc:0.001", "dgc:0.1:0", "dgc:0.1:3:8:0.9"],
    "powersgd": ["powersgd:4", "powersgd:2:16", "powersgd:2:8"],
    "lowrank": ["lowrank:0.01", "lowrank:0.2"],
}
LISTED = [text for name in CODECS for text in TEXTS.get(name, [])]
DEFAULTS = [TEXTS[name][0] for name in CODECS if name in TEXTS]
# What draws, where there is no feedback around it; in 5,000 values, so little that two keys never agree.
STOCHASTIC = ("qsgd:2", "qsgd:4", "qsgd:8", "ternary", "randomk:0.01", "levels:1:rotate", "levels:4:rotate")


def forms(text: str) -> list[str]:
    """A codec's text with and without feedback, where there is any; a row's first text with a stage too."""
    stages = ["", ":zstd"] if text in DEFAULTS else [""]
    feedback = ["", ":nofeedback"] if isinstance(parse(text), Feedback) else [""]
    return [text + stage + word for stage in stages for word in feedback]


FORMS = [form for text in LISTED for form in forms(text)]
BARE = [form for form in FORMS if not isinstance(parse(form), Feedback)]  # feedback decodes as they do
PLAIN = [form for form in FORMS if inner(parse(form)) == parse(form)]
STAGED = [
    form for form in BARE if form.startswith(("none:zstd", "sign:zstd", "topk:0.01:zstd"))
]  # enough for long tests
LOSSY = [form for form in FORMS if not parse(form).lossless]
SENDING = Sending(key=1)
KINDS = ["gaussian", "heavy", "sparse", "constant", "zeros", "tiny", "huge", "steps"]


def vector(kind: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A vector (size,) of one of KINDS; the same one every time."""
    return _made(kind, size).to(dtype, copy=True)


@cache
def _made(kind: str, size: int) -> Tensor:
    draws = torch.Generator().manual_seed(size)
    normal = torch.randn(size, dtype=torch.float64, generator=draws)
    other = torch.rand(size, dtype=torch.float64, generator=draws)
    match kind:
        case "heavy":
            return normal / other.clamp(min=1e-6) ** 2
        case "sparse":
            return normal * (other > 0.99)
        case "constant":
            return torch.full_like(normal, -0.3)
        case "steps":
            return normal * 10.0 ** torch.arange(size).div(100, rounding_mode="floor").remainder(7).neg()
        case _:
            return normal * {"gaussian": 1, "zeros": 0, "tiny": 1e-36, "huge": 1e30}[kind]


def net() -> Layout:
    """The layout of a small network: weights of four and two dimensions, biases, norms."""
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.Linear(40, 10)
    )
    return Layout.of(layers)


LAYOUTS = {"vector": Layout.vector(1025), "net": net()}


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def image(memory: Memory) -> dict[str, bytes]:
    """The very bytes of a memory."""
    return {name: bits(tensor) for name, tensor in memory.items()}


def warmed(codec: Codec, layout: Layout, dtype: torch.dtype = torch.float32, rounds: int = 3) -> Memory:
    """The codec's memory after some rounds."""
    memory: Memory = {}
    for number in range(rounds):
        update = vector("gaussian", layout.count + number, dtype)[: layout.count]
        _, memory = codec.encode(update, layout, memory, Sending(key=100 + number))
    return memory


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm())
