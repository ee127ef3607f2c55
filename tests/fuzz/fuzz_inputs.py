"""What the fuzzers feed to the decoders: every codec there is, layouts, and payloads that are nearly right.

Bytes drawn at random die at the first check. So an input starts as a payload that the codec made, and is
changed in a few places: bits, stretches, numbers that decoders stumble over, lengths. What lies under a
lossless stage is changed before it is compressed, and what a frame says is changed before it is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from random import Random

import torch
import zstandard
from torch import Tensor, nn

from edgewise import specs, wire
from edgewise.codecs import CODECS, Codec, Sending
from edgewise.codecs.zstd import FRAME, PLANES, STORED, Zstd, to_planes
from edgewise.errors import EdgewiseError
from edgewise.vector import Layout
from edgewise.wire import Expected, Frame, Kind

VALUES: dict[type, tuple[object, ...]] = {
    int: (1, 2, 3, 4, 8, 16, 100),
    float: (0.01, 0.3, 1.0),
    bool: (False, True),
    str: (),
}
MODEL = nn.Sequential(
    nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 1, bias=False), nn.Flatten(), nn.Linear(72, 10)
)
WIDE = 100_000  # values of the largest layout
LAYOUTS = [*(Layout.vector(count) for count in (0, 1, 100, 5000)), Layout.of(MODEL), Layout.vector(WIDE)]
WEIGHTS = (1, 4, 60, 14, 40, 1)  # how often each layout is drawn
DTYPES = (torch.float32, torch.float64)
BUFFERS = 12  # bytes of buffers in a frame
NUMBERS = (0, 1, 2, 99, 100, 101, 4999, 5000, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF)
WIDE_NUMBERS = (*NUMBERS, 0x7FC00000, 0x7F800000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def variants(name: str) -> Iterator[Codec]:
    """A codec with its defaults, then with each setting varied, as far as the values are legal."""
    member, slots = CODECS[name], fields(CODECS[name])  # type: ignore[arg-type]
    needed = {slot.name: VALUES[specs.kind_of(slot)][1] for slot in slots if slot.default is MISSING}
    yield member(**needed)
    for slot in slots:
        for value in VALUES[specs.kind_of(slot)]:
            try:
                codec = member(**{**needed, slot.name: value})
            except (EdgewiseError, ValueError):
                continue
            yield codec


@cache
def codecs() -> list[tuple[str, Codec]]:
    """Every codec under its name, alone and under a lossless stage."""
    plain = [(name, codec) for name in CODECS for codec in dict.fromkeys(variants(name))]
    return plain + [(f"{name}:zstd", Zstd(codec)) for name, codec in plain]


@cache
def by_name() -> dict[str, list[int]]:
    """Where in `codecs` each name stands."""
    names: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(codecs()):
        names.setdefault(name, []).append(index)
    return names


@dataclass(frozen=True)
class Case:
    """A codec, a layout and a dtype, by their numbers: what both ends know before a frame travels."""

    codec: int
    layout: int
    dtype: int

    @classmethod
    def draw(cls, rng: Random) -> Case:
        codec = rng.choice(by_name()[rng.choice(list(by_name()))])
        return cls(codec, rng.choices(range(len(LAYOUTS)), WEIGHTS)[0], rng.randrange(len(DTYPES)))

    @property
    def name(self) -> str:
        return codecs()[self.codec][0]

    def parts(self) -> tuple[Codec, Layout, torch.dtype]:
        return codecs()[self.codec][1], LAYOUTS[self.layout], DTYPES[self.dtype]

    def frame(self, payload: bytes) -> Frame:
        """The frame that carries a payload of this case."""
        wanted = expected(self)
        return Frame(Kind.UPDATE, wanted.layout, wanted.codec, 5, 7, 0.5, 640, payload, bytes(range(BUFFERS)))


@cache
def expected(case: Case) -> Expected:
    """What a receiver that knows the case takes."""
    codec, layout, dtype = case.parts()
    marks = wire.layout_mark(layout.digest), wire.codec_mark(repr(codec))
    return Expected(Kind.UPDATE, *marks, codec.bound(layout, dtype), BUFFERS, codec.fixed)


@cache
def vector(layout: int, kind: int) -> Tensor:
    """Values that spread over decades, zeros, or a few values among zeros; (P,), float64."""
    generator = torch.Generator().manual_seed(kind)
    count = LAYOUTS[layout].count
    values = torch.randn(count, dtype=torch.float64, generator=generator)
    if kind == 1:
        return values.zero_()
    if kind == 2:
        return values * (torch.rand(count, generator=generator) < 0.01)
    return values * 10 ** values.roll(1).clamp(-3, 3)


@cache
def valid(case: Case, kind: int) -> bytes:
    """A payload as the codec makes it."""
    codec, layout, dtype = case.parts()
    sending = Sending(key=kind, fed=kind != 0)
    return codec.encode(vector(case.layout, kind).to(dtype), layout, {}, sending)[0]


@cache
def bombs() -> tuple[bytes, ...]:
    """Compressed bytes that hold far more than they weigh, with and without saying so; odd frames."""
    large = [
        zstandard.ZstdCompressor(write_content_size=says).compress(bytes(1 << 26)) for says in (True, False)
    ]
    some = zstandard.ZstdCompressor().compress(bytes(400))
    skipped = b"\x50\x2a\x4d\x18" + (1 << 31).to_bytes(4, "little")
    claims = some[:4] + b"\xe0" + (1 << 40).to_bytes(8, "little") + some[6:]
    return (*large, some * 1000, skipped + some, claims, b"", some[:4])


def payload(case: Case, rng: Random) -> bytes:
    """A payload that is nearly right for the case."""
    codec, *_ = case.parts()
    plain = valid(case, rng.randrange(3))
    if not isinstance(codec, Zstd) or rng.random() < 0.4:
        return mutated(plain, rng)
    flag = rng.choice((STORED, FRAME, PLANES))
    if rng.random() < 0.05:
        return bytes([flag]) + rng.choice(bombs())
    inner = mutated(valid(Case(names_inner(case), case.layout, case.dtype), rng.randrange(3)), rng)
    if flag == STORED:
        return bytes([flag]) + inner
    return bytes([flag]) + zstandard.compress(to_planes(inner) if flag == PLANES else inner, 1)


def names_inner(case: Case) -> int:
    """The number of the codec that lies under a case's lossless stage."""
    return case.codec - len(codecs()) // 2


def frame(case: Case, rng: Random) -> bytes:
    """A frame that is nearly right for the case: mostly its header is changed."""
    packed = wire.pack(case.frame(valid(case, rng.randrange(3))))
    if rng.random() < 0.3:
        return mutated(packed, rng)
    return mutated(packed[: wire.LENGTH], rng) + packed[wire.LENGTH :]


def mutated(data: bytes, rng: Random) -> bytes:
    """The bytes with one to four changes, most of them near the beginning or where numbers lie."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        if rng.random() < 0.4:
            at = min(at, rng.randrange(16))
        rng.choice(CHANGES)(changed, at, rng)
    return bytes(changed)


def flip(data: bytearray, at: int, rng: Random) -> None:
    if at < len(data):
        data[at] ^= 1 << rng.randrange(8)


def number(data: bytearray, at: int, rng: Random) -> None:
    """A number that decoders stumble over, in one, two or four bytes."""
    size = rng.choice((1, 2, 4))
    values = WIDE_NUMBERS if size == 4 else NUMBERS
    new = (rng.choice(values) % 256**size).to_bytes(size, "little")
    at = max(0, min(at, len(data) - size)) // size * size if rng.random() < 0.5 else at
    data[at : at + size] = new[: len(data) - at]


def stretch(data: bytearray, at: int, rng: Random) -> None:
    """One value, or noise, over a stretch: continuation bits without end, scales that are no numbers."""
    size = min(len(data) - at, rng.choice((1, 4, 16, 64, 4096)))
    fill = rng.choice((b"\0", b"\xff", b"\x80", b"\x7f", b""))
    data[at : at + size] = fill * size or rng.randbytes(size)


def insert(data: bytearray, at: int, rng: Random) -> None:
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 33)))


def delete(data: bytearray, at: int, rng: Random) -> None:
    del data[at : at + rng.choice((1, 2, 4, 33, len(data)))]


def swap(data: bytearray, at: int, rng: Random) -> None:
    """Two groups of four bytes change places: what was in order no longer is."""
    other = rng.randrange(len(data) + 1)
    size = min(4, abs(at - other), len(data) - max(at, other))
    data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]


def repeat(data: bytearray, at: int, rng: Random) -> None:
    """A stretch comes twice, in place of what followed it or before it."""
    part = data[at : at + rng.choice((1, 4, 32))]
    data[at + len(part) : at + len(part) * rng.randrange(1, 3)] = part


def end(data: bytearray, at: int, rng: Random) -> None:
    """Another length at the end, where most lengths are checked."""
    if rng.random() < 0.5:
        del data[len(data) - min(len(data), rng.choice((1, 2, 4, 8))) :]
    else:
        data += rng.choice((b"\0", b"\xff", rng.randbytes(4), bytes(data[:64])))


CHANGES = (flip, flip, number, number, stretch, insert, delete, swap, repeat, end)
