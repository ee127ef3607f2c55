"""What the fuzzers of the stream say: a conversation as it should be, changed in a few places.

A word is a message's bytes, or what makes them once it is said: a verdict depends on the update before it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from fuzz_inputs import mutated

from edgewise.engines.fleet.messages import DOWN, FIELDS, UP, down, up

Word = bytes | Callable[[], bytes]
BOUNDS = (0, 1, 2, 3, 255, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
VALUES: dict[str, Callable[[Random], Any]] = {
    "uint32": lambda rng: rng.choice(BOUNDS),
    "uint64": lambda rng: rng.choice((*BOUNDS, 1 << 40, 1 << 63, (1 << 64) - 1)),
    "double": lambda rng: rng.choice((0.0, -1.0, 0.1, 1e308, float("nan"), float("inf"), -float("inf"))),
    "bool": lambda rng: rng.random() < 0.5,
    "bytes": lambda rng: rng.randbytes(rng.choice((0, 1, 9, 31, 32, 33, 64, 5000))),
    "string": lambda rng: rng.choice(("", "\0", "../../x", "a" * 32, "\x1b[2J", "ä" * 1000, "version = 1\n")),
}


def value(kind: str, rng: Random) -> Any:
    if kind.startswith("*"):
        return [value(kind[1:], rng) for _ in range(rng.choice((0, 1, 2, 6, 100)))]
    return VALUES[kind](rng)


def any_message(way: str, rng: Random) -> bytes:
    """A message of any kind, whose fields say anything."""
    name = rng.choice(UP if way == "up" else DOWN)
    fields = (field.split(":") for field in FIELDS[name])
    body = {field: value(kind, rng) for field, kind in fields if rng.random() < 0.7}
    return bytes((up if way == "up" else down)(**{name.lower(): body}).SerializeToString())


def varied(way: str, kind: str, body: dict[str, Any], rng: Random) -> bytes:
    """A message as it should be, mostly: at times a field says something else."""
    if rng.random() < 0.15:
        field, type_ = rng.choice(FIELDS[kind.capitalize()]).split(":")
        body = {**body, field: value(type_, rng)}
    return bytes((up if way == "up" else down)(**{kind: body}).SerializeToString())


def disturbed(words: list[Word], way: str, rng: Random) -> list[Word]:
    """The conversation with up to four of its words changed, doubled, moved, left out, or others between."""
    words = list(words)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        at = rng.randrange(len(words) + 1)
        deed = rng.choice((insert, insert, change, change, double, omit, move, cut))
        deed(words, at, way, rng)
    return words


def insert(words: list[Word], at: int, way: str, rng: Random) -> None:
    words.insert(at, any_message(way, rng) if rng.random() < 0.8 else rng.randbytes(rng.randrange(40)))


def change(words: list[Word], at: int, way: str, rng: Random) -> None:
    if at < len(words) and isinstance(word := words[at], bytes):
        words[at] = mutated(word, rng)


def double(words: list[Word], at: int, way: str, rng: Random) -> None:
    words[at:at] = words[at : at + rng.choice((1, 3))]


def omit(words: list[Word], at: int, way: str, rng: Random) -> None:
    del words[at : at + 1]


def move(words: list[Word], at: int, way: str, rng: Random) -> None:
    if at < len(words):
        words.insert(rng.randrange(len(words)), words.pop(at))


def cut(words: list[Word], at: int, way: str, rng: Random) -> None:
    """The stream ends here."""
    if rng.random() < 0.5:
        del words[at:]
