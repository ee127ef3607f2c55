"""What follows what in a model, seen in one forward pass: which layer's output a norm takes."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from edgewise.errors import EdgewiseError
from edgewise.models.outputs import logits

Computing = _ConvNd | nn.Linear  # what a norm can be folded into


@dataclass(frozen=True)
class Flow:
    """One forward pass of a model in eval mode. Names are those of `named_modules`.

    `output`: the logits; `feeders`: for each norm the convolution or linear layer whose output it takes,
    where each is called once; `inputs`: what each norm took, (N, C, ...).
    """

    output: Tensor
    feeders: dict[str, str]
    inputs: dict[str, Tensor]


@torch.no_grad()
def trace(model: nn.Module, example: Tensor) -> Flow:
    """Run `model` once on `example` (N, ...), in eval mode, and see what follows what.

    EdgewiseError if the model fails on it or gives no tensor.
    """
    watch, mode = _Watch(), model.training
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, Computing):
                hooks.callback(module.register_forward_hook(partial(watch.computed, name)).remove)
            elif isinstance(module, _BatchNorm):
                hooks.callback(module.register_forward_pre_hook(partial(watch.normed, name)).remove)
        hooks.callback(model.train, mode)
        output = _called(model.eval(), example)
    once = {n: f for n, f in watch.feeders.items() if watch.calls[n] == 1 and watch.calls[f] == 1}
    return Flow(output, once, watch.inputs)


class _Watch:
    """What the hooks see."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.made: dict[int, tuple[str, Tensor]] = {}  # with the tensor, or its id would be given away again
        self.feeders: dict[str, str] = {}
        self.inputs: dict[str, Tensor] = {}

    def computed(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        self.calls[name] += 1
        if isinstance(output, Tensor):
            self.made[id(output)] = (name, output)

    def normed(self, name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.calls[name] += 1
        self.inputs[name] = arguments[0]
        if id(arguments[0]) in self.made:
            self.feeders[name] = self.made[id(arguments[0])][0]


def _called(model: nn.Module, example: Tensor) -> Tensor:
    try:
        output = logits(model(example))
    except Exception as error:  # a user's model can raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise EdgewiseError(f"model: fails on an example of shape {tuple(example.shape)}: {text}") from error
    if not isinstance(output, Tensor):
        raise EdgewiseError(f"model: gives {type(output).__name__}; it must give a tensor, or one in .logits")
    return output


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` in the place called `name`; the model, which is `new` itself for the name ""."""
    if not name:
        return new
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, new)
    return model
