"""Resuming a run: its own config stands; what is asked for now must agree with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.config import Config, read_toml
from edgewise.errors import EdgewiseError
from edgewise.settings import NAMES

FREE = ("data_dir", "processes")  # the data may have moved, and the machine may be another
OPEN = (None, "auto")  # was left open then and may be left open now


def reconcile(path: Path, asked: Config) -> Config:
    """The stored config; EdgewiseError naming the first setting in which `asked` differs from it."""
    stored = _stored(path)
    agree(_run(path), _flat(path, stored), asked.flat())
    free = {name: getattr(asked, name) for name in FREE}
    return Config.of({**stored, **{name: value for name, value in free.items() if value not in OPEN}})


def overlay(path: Path, given: Mapping[str, Any]) -> Config:
    """The stored config, for settings that were `given` one by one; those not given agree with any.

    EdgewiseError naming the first that differs.
    """
    stored = _stored(path)
    was = _flat(path, stored)
    free = {name: given[name] for name in FREE if given.get(name) not in OPEN}
    closed = {name: value for name, value in given.items() if value not in OPEN and name not in FREE}
    extras = {**was.get("set", {}), **closed.get("set", {})}
    try:
        # Through a config, because one setting has many spellings: dirichlet:.10 is dirichlet:0.1.
        now = Config.of({**was, **closed, "set": extras}).flat()
    except EdgewiseError:
        agree(_run(path), was, {**was, **closed, "set": was.get("set", {})})
        raise  # no change to what the run has, but nothing that a run can have either
    agree(_run(path), was, now)
    return Config.of({**stored, **free})


def _stored(path: Path) -> dict[str, Any]:
    """A run from before there was a choice of kernels was begun with PyTorch's, and goes on with them."""
    return {"kernels": "torch", **read_toml(path)}


def _run(path: Path) -> str:
    return f"the run in {path.parent}"


def _flat(path: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return Config.of(stored).flat()
    except EdgewiseError as error:
        raise EdgewiseError(f"{path}: {error}") from None


def agree(whose: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """EdgewiseError naming the first of the flat settings `now` that differs from `was`, whose they are."""
    pairs = [(name, was[name], now[name]) for name in NAMES if name not in FREE and now[name] not in OPEN]
    then, extras = was.get("set", {}), now.get("set", {})
    pairs += [(f"set {name}", then.get(name), extras.get(name)) for name in sorted({*then, *extras})]
    for name, old, new in pairs:
        if old != new:
            shown = ", not ".join("its default" if value is None else repr(value) for value in (old, new))
            raise EdgewiseError(f"{name}: {whose} has {shown}; resume it as it was, or give another --out")
