"""Text forms of values: "labels:2:overlap" <-> Labels(k=2, overlap=True).

Partitions, norms, codecs and schedules are frozen dataclasses kept in literal tables. Their text form is the
table's name, then the fields in order, separated by colons; a boolean field is written as its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from edgewise.errors import EdgewiseError

TYPES: dict[Any, type] = {"int": int, "float": float, "bool": bool, "str": str}


def parse(table: Mapping[str, Any], text: str, what: str) -> Any:
    """The value that `text` stands for; EdgewiseError naming `what` and the legal forms."""
    name, *words = str(text).split(":")
    if name not in table:
        raise EdgewiseError(f"{what}: {text!r} is unknown; one of: {', '.join(forms(table))}")
    slots = list(fields(table[name]))
    values: dict[str, Any] = {}
    try:
        for word in words:
            # A switch by its name before the next field by its place: "topk:nofeedback" names no share.
            flag = next((s for s in slots if _flag(s) and s.name == word), None)
            slot = flag or next(s for s in slots if not _flag(s))
            values[slot.name] = True if _flag(slot) else convert(slot, word)
            slots.remove(slot)
    except (StopIteration, TypeError, ValueError):
        raise EdgewiseError(f"{what}: {text!r} does not fit the form {form(name, table[name])}") from None
    if any(_required(slot) for slot in slots):
        raise EdgewiseError(f"{what}: {text!r} lacks a value; its form is {form(name, table[name])}")
    return table[name](**values)


def text(table: Mapping[str, Any], value: Any, least: int = 0) -> str:
    """The text form of a value of the table.

    Fields that hold their default are left out at the end, but not the first `least` ones.
    """
    name = name_of(table, value)
    words = [(slot, getattr(value, slot.name)) for slot in fields(value)]
    while len(words) > least and words[-1][1] == words[-1][0].default:
        words.pop()
    shown = [s.name if _flag(s) else _short(v) for s, v in words if not (_flag(s) and not v)]
    return ":".join([name, *shown])


def name_of(table: Mapping[str, Any], value: Any) -> str:
    """The table's name for a value of one of its classes."""
    for name, member in table.items():
        if type(value) is member:
            return name
    raise EdgewiseError(f"{value!r} is none of: {', '.join(table)}")


def forms(table: Mapping[str, Any]) -> list[str]:
    """Every legal form, for messages: ["iid", "labels:k[:overlap]", ...]."""
    return [form(name, member) for name, member in table.items()]


def form(name: str, member: Any) -> str:
    """One legal form: "labels:K[:overlap]"."""
    words = [f":{s.name.upper()}" if _required(s) else f"[:{s.name}]" for s in fields(member)]
    return name + "".join(words)


def convert(slot: Field[Any], word: Any) -> Any:
    """A field's value from a word or a TOML value; TypeError or ValueError if it does not fit the type."""
    kind = kind_of(slot)
    if kind is bool:
        if word is True or word in ("true", "on"):
            return True
        if word is False or word in ("false", "off"):
            return False
        raise ValueError(f"{word!r} is neither true nor false")
    if isinstance(word, bool) or (kind is int and not str(word).lstrip("+-").isdigit()):
        raise ValueError(f"{word!r} is not a number")
    value = kind(word)
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{word!r} is not finite")
    return value


def kind_of(slot: Field[Any]) -> Any:
    """A field's type, annotated as it is or, after `from __future__ import annotations`, by its name."""
    return TYPES.get(slot.type, slot.type)


def _flag(slot: Field[Any]) -> bool:
    return kind_of(slot) is bool


def _required(slot: Field[Any]) -> bool:
    return slot.default is MISSING and slot.default_factory is MISSING


def _short(value: Any) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short
