"""What a device has: datasets, how they are dealt out, and the batches each device draws from its share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgewise.data.collecting import collect
from edgewise.data.collecting import folder as collect_folder
from edgewise.data.dataset import Dataset, Split
from edgewise.errors import EdgewiseError

LARGEST_SIDE = 4096

__all__ = ["DATA", "Dataset", "Split", "collect", "load"]


def _digits(folder: Path | None) -> Dataset:
    from edgewise.data import digits

    if folder is not None:
        raise EdgewiseError(f"data 'digits' comes with scikit-learn: leave out the data folder {folder}")
    return digits.load()


def _cifar10(folder: Path | None) -> Dataset:
    from edgewise.data import cifar10

    return cifar10.load(folder)


def _folder(folder: Path | None, side: str = "") -> Dataset:
    if folder is None:
        raise EdgewiseError("data 'folder': which? give it with --data-dir")
    if side and not (side.isascii() and side.isdigit() and 1 <= int(side) <= LARGEST_SIDE):
        raise EdgewiseError(f"data 'folder:{side}': the side of an image is 1 to {LARGEST_SIDE} pixels")
    return collect_folder(folder, int(side) if side else None)


# Each imports what it needs when called: scikit-learn alone takes a second to import.
DATA: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "folder": _folder,
}


def load(name: str, folder: Path | None = None) -> Dataset:
    """The dataset of this name, or what "package.module:function" returns.

    "folder:64" scales images to 64 x 64. A function is called with `folder` if that is given, else with
    nothing. EdgewiseError whatever fails.
    """
    if name.startswith("folder:"):
        return _folder(folder, name.removeprefix("folder:"))
    if ":" in name:
        return _call(name, _find(name), folder)
    if name not in DATA:
        raise EdgewiseError(f"no data {name!r}; legal: {_legal()}")
    return DATA[name](folder)


def _legal() -> str:
    return ", ".join([*DATA, "package.module:function"])


def _find(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module of the user's can fail in any way at all
        raise EdgewiseError(f"data {name!r}: cannot import it: {_line(error)}; legal: {_legal()}") from error
    if not callable(found):
        raise EdgewiseError(f"data {name!r} is not a function; legal: {_legal()}")
    return found


def _call(name: str, function: Callable[..., Any], folder: Path | None) -> Dataset:
    try:
        made = function() if folder is None else function(folder)
    except EdgewiseError:
        raise
    except Exception as error:
        raise EdgewiseError(f"data {name!r} failed with {_line(error)}; legal: {_legal()}") from error
    if isinstance(made, str | bytes) or (
        not isinstance(made, Dataset | tuple) and not hasattr(made, "__getitem__")
    ):
        kind = type(made).__name__
        raise EdgewiseError(
            f"data {name!r} must return an edgewise.data.Dataset, or what one is collected from, not {kind}; "
            f"legal: {_legal()}"
        )
    return collect(made, name=name)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
