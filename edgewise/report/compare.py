"""What tells runs apart and what they share, in words: the settings of their config.toml."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from edgewise.config import Config
from edgewise.reconcile import FREE

# Settings whose value says enough, and values of others that go without saying.
PLAIN = ("data", "model", "partition", "algorithm", "codec")
UNSAID = {"sync_every": 1, "server_lr": 1.0, "server_momentum": 0.0, "local_momentum": "reset"}
QUIET = ("eval_every", "fused", "engine", "accelerator", "threads")  # said where nothing else differs
LONGEST = 64  # label beside a picture, in letters
TELLING = (
    *("data", "model", "width", "devices", "partition", "algorithm", "sync_every", "norm", "codec"),
    *("batch", "lr", "epochs", "steps", "seed"),
)


def differences(configs: Sequence[Config]) -> list[str]:
    """For each run, the settings in which the runs differ."""
    flats = [_flat(config) for config in configs]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    differ = [name for name in names if any(a.get(name) != b.get(name) for a, b in pairwise(flats))]
    differ = [name for name in differ if name not in QUIET] or differ
    return [", ".join(_words(name, flat[name]) for name in differ if _said(name, flat)) for flat in flats]


def shared(configs: Sequence[Config]) -> str:
    """The settings that all runs have, those that tell most."""
    flats = [_flat(config) for config in configs]
    same = [name for name in TELLING if all(flat.get(name) == flats[0].get(name) for flat in flats)]
    return ", ".join(_words(name, flats[0][name]) for name in same if _said(name, flats[0]))


def labels(names: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """What to call each run in a picture: its name, or its settings where it was only given a number."""
    words = differences(configs)
    if max(map(len, words), default=0) > LONGEST:
        words = [""] * len(words)
    numbered = [name.split("/")[-1].isdigit() for name in names]
    told = [
        word if number and word else name for name, word, number in zip(names, words, numbered, strict=True)
    ]
    return [_end(label if told.count(label) == 1 else name) for label, name in zip(told, names, strict=True)]


def _end(label: str) -> str:
    """The end of a long label: that is where names differ."""
    return label if len(label) <= LONGEST else "…" + label[-LONGEST + 1 :]


def _flat(config: Config) -> dict[str, Any]:
    flat = config.flat()
    extras = flat.pop("set", {})
    return {name: value for name, value in {**flat, **extras}.items() if name not in FREE}


def _said(name: str, flat: dict[str, Any]) -> bool:
    value = flat.get(name)
    return value is not None and value != UNSAID.get(name)


def _words(name: str, value: Any) -> str:
    if name in PLAIN and value != "none":
        return str(value)
    if name == "devices":
        return f"{value} devices"
    shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
    return f"{name.replace('_', ' ')} {shown}"
