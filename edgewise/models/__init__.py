"""Models by name, with initial weights that depend on the seed alone."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgewise import randomness
from edgewise.errors import EdgewiseError, EdgewiseWarning
from edgewise.models import zoo
from edgewise.models.examine import examine, examine_parameters
from edgewise.models.fixup import FixupResNet18
from edgewise.models.heads import DEFAULT_HEAD, Head
from edgewise.models.norms import Norm
from edgewise.models.outputs import logits
from edgewise.models.resnet import ResNet18, Shape


class UnusualModel(EdgewiseWarning):
    """Something in a model of the user's that works in a way one should know."""


MODELS: dict[str, Callable[..., nn.Module]] = {"resnet18": ResNet18, "fixup-resnet18": FixupResNet18}


def build(  # noqa: PLR0913  (settings of one thing)
    name: str,
    shape: Shape,
    classes: int,
    width: int,
    norm: Norm,
    seed: int,
    head: Head = DEFAULT_HEAD,
) -> nn.Module:
    """The model called `name` for images of `shape` (channels, height, width), on the CPU.

    `name` is a key of `MODELS` or "package.module:function"; that function is called with `shape` and
    `classes`, and with `width`, `norm` and `head` if it has parameters of these names. Initial weights come
    from PyTorch's generator, seeded for this seed and the purpose "model"; the caller's generator is left as
    it was.
    EdgewiseError for an unknown name, a width below 1, or a function that fails or returns no nn.Module
    with something to train.
    """
    if width < 1:
        raise EdgewiseError(f"model {name}: width is {width}; it must be 1 or more")
    make = _maker(name)
    if head != DEFAULT_HEAD and "head" not in inspect.signature(make).parameters:
        raise EdgewiseError(f"head: model {name} has its own; leave it out (its function takes no `head`)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(seed, "model"))
        try:
            model = make(
                shape=shape, classes=classes, **_optional(make, {"width": width, "norm": norm, "head": head})
            )
        except EdgewiseError:
            raise
        except Exception as error:  # a user's function can raise anything
            raise EdgewiseError(f"model {name}: the call failed: {_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise EdgewiseError(
            f"model {name}: returned {type(model).__name__}; it must return a torch.nn.Module"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise EdgewiseError(f"model {name}: has nothing to train; some parameter must require a gradient")
    if name not in MODELS:
        _check(name, model, shape, classes)
    return model


def takes(what: str, name: str) -> bool:
    """Whether the model called `name` is made with the run's `what` (norm, head, width); EdgewiseError as in

    `build`.
    """
    return what in inspect.signature(_maker(name)).parameters


def _maker(name: str) -> Callable[..., nn.Module]:
    if name in MODELS:
        return MODELS[name]
    return zoo.maker(name) if zoo.in_zoo(name) else _imported(name)


def _check(name: str, model: nn.Module, shape: Shape, classes: int) -> None:
    """EdgewiseError for what cannot work in a model of the user's; a warning for what one should know."""
    lazy = [finding for finding in examine_parameters(model) if finding.fatal]
    if lazy:
        raise EdgewiseError(f"model {name}: {lazy[0].text}")
    _try_out(name, model, shape, classes)
    with torch.random.fork_rng(devices=[]):
        found = examine(model, torch.rand(3, *shape))
    for finding in found:
        if finding.fatal:
            raise EdgewiseError(f"model {name}: {finding.text}")
        warnings.warn(f"model {name}: {finding.text}", UnusualModel, stacklevel=4)


def _try_out(name: str, model: nn.Module, shape: Shape, classes: int) -> None:
    """EdgewiseError unless the model turns two images into two rows of logits."""
    mode = model.training
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            answers = logits(model.eval()(torch.zeros(2, *shape)))
    except Exception as error:  # a user's model can raise anything
        raise EdgewiseError(f"model {name}: fails on images of shape {shape}: {_line(error)}") from error
    finally:
        model.train(mode)
    if not isinstance(answers, torch.Tensor) or answers.shape != (2, classes):
        found = tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
        raise EdgewiseError(f"model {name}: gives {found} for 2 images; it must give (2, {classes})")
    if not answers.is_floating_point():
        raise EdgewiseError(f"model {name}: gives {answers.dtype}; it must give floats, the logits")
    if not answers.requires_grad:
        raise EdgewiseError(
            f"model {name}: no gradient goes from its answers to its parameters (detach, no_grad?)"
        )


def _optional(make: Callable[..., nn.Module], offered: dict[str, Any]) -> dict[str, Any]:
    accepted = inspect.signature(make).parameters
    return {key: value for key, value in offered.items() if key in accepted}


def _imported(name: str) -> Callable[..., nn.Module]:
    module_name, colon, function_name = name.partition(":")
    legal = f"use {', '.join(MODELS)}, package.module:function, or {', '.join(zoo.ZOO)}:name"
    if not colon:
        raise EdgewiseError(f"model {name}: unknown; {legal}")
    # The installed command, unlike `python -m`, does not look in the current directory.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # a user's module can raise anything while it is imported
        raise EdgewiseError(f"model {name}: cannot import it: {_line(error)}; {legal}") from error
    if not callable(make):
        raise EdgewiseError(
            f"model {name}: {function_name} is a {type(make).__name__}, not a function; {legal}"
        )
    found: Callable[..., nn.Module] = make
    return found


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
