"""Resuming a run: its own config stands; what is asked for now must agree with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.config import Config, read_toml
from edgewise.errors import EdgewiseError

FREE = ("data_dir",)  # the data may have moved
OPEN = (None, "auto")  # was left open then and may be left open now


def reconcile(path: Path, asked: Config) -> Config:
    """The stored config; EdgewiseError naming the first setting in which `asked` differs from it."""
    stored = read_toml(path)
    check(path, stored, asked.flat())
    return Config.of({**stored, "data_dir": asked.data_dir or stored.get("data_dir")})


def check(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """EdgewiseError if a setting asked for now is not the stored one. Settings left open agree with any."""
    for name, value in asked.items():
        if name in FREE or value in OPEN:
            continue
        if name == "set":
            check(path, stored.get("set", {}), value)
        elif stored.get(name) != value:
            was = stored.get(name, "its default")
            raise EdgewiseError(
                f"{name}: the run in {path.parent} has {was!r}, not {value!r}; resume it as it was"
            )
