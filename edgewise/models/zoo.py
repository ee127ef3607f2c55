"""Models of other packages by name, where these are installed: timm:NAME, torchvision:NAME,
transformers:NAME.

Random weights, nothing is downloaded. Weights from a file come with `--start`; a folder that
`save_pretrained` wrote is a model of `transformers` too: transformers:./folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from edgewise.errors import EdgewiseError

Shape = tuple[int, int, int]


def _timm(name: str, shape: Shape, classes: int) -> nn.Module:
    timm = importlib.import_module("timm")
    made: nn.Module = timm.create_model(name, pretrained=False, in_chans=shape[0], num_classes=classes)
    return made


def _torchvision(name: str, shape: Shape, classes: int) -> nn.Module:
    made: nn.Module = importlib.import_module("torchvision.models").get_model(
        name, weights=None, num_classes=classes
    )
    return made


def _transformers(name: str, shape: Shape, classes: int) -> nn.Module:
    package = importlib.import_module("transformers")
    auto: Any = package.AutoModelForImageClassification
    own = {"num_labels": classes, "num_channels": shape[0], "image_size": max(shape[1:])}
    if not Path(name).is_dir():
        made: nn.Module = auto.from_config(package.AutoConfig.for_model(name, **own))
        return made
    config = package.AutoConfig.from_pretrained(name, local_files_only=True)
    for key, value in own.items():
        if hasattr(config, key):
            setattr(config, key, value)
    read: nn.Module = auto.from_pretrained(
        name, config=config, local_files_only=True, ignore_mismatched_sizes=True
    )
    return read


ZOO: dict[str, Callable[[str, Shape, int], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


def in_zoo(name: str) -> bool:
    return name.split(":")[0] in ZOO and ":" in name


def maker(name: str) -> Callable[..., nn.Module]:
    """What makes the model called "package:name"; EdgewiseError where the package is missing."""
    package, _, rest = name.partition(":")
    try:
        importlib.import_module(package)
    except Exception as error:  # a package that does not fit this PyTorch can fail in any way
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise EdgewiseError(f"model {name}: {package} cannot be used here ({text})") from None
    return lambda shape, classes: ZOO[package](rest, shape, classes)
