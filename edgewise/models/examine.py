"""What in a model of the user's will not work on many devices, or works in a way that one should know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from edgewise.models.heads import ScaledFrame
from edgewise.models.outputs import logits


@dataclass(frozen=True)
class Finding:
    """`fatal`: it cannot be trained as it is. `text`: what, where, and what to do."""

    fatal: bool
    text: str


def examine(model: nn.Module, images: Tensor) -> list[Finding]:
    """All that is found in a model that runs on `images` (N, C, H, W), N at least 3; what is fatal comes
    first.

    The model is left in its mode; a module that changes itself while it runs has changed.
    """
    found = [*examine_parameters(model), *_shared(model), *_counters(model), *_frozen(model)]
    if not any(finding.fatal for finding in found):
        found += [*_own_state(model, images), *_shapes(model, images)]
    return sorted(found, key=lambda finding: not finding.fatal)


def examine_parameters(model: nn.Module) -> Iterator[Finding]:
    """Parameters that no vector of floats can hold; before the model is run for the first time."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            yield Finding(
                True, f"{name} has no size yet (a lazy module); run the model once before you return it"
            )
        elif not parameter.is_floating_point():
            yield Finding(
                True, f"{name} is {parameter.dtype}; parameters are real floating-point numbers here"
            )


def _shared(model: nn.Module) -> Iterator[Finding]:
    """One parameter under two names is fine; two parameters in one memory would come apart."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter) or not parameter.numel():
            continue
        place = parameter.untyped_storage().data_ptr()
        if place in first:
            yield Finding(
                True, f"{first[place]} and {name} share memory but are two parameters; tie them by using one"
            )
        first.setdefault(place, name)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    kept = {name for name, _ in model.named_parameters()}
    for name in names:
        if name not in kept:
            yield Finding(False, f"{name} is tied to another parameter; it trains, travels and is saved once")


def _counters(model: nn.Module) -> Iterator[Finding]:
    counters = [
        name
        for name, buffer in model.named_buffers()
        if not buffer.is_floating_point() and not name.endswith("num_batches_tracked")
    ]
    if counters:
        yield Finding(
            False,
            f"{_some(counters)}: integer buffers; they stay on each device, and are not in the saved model",
        )


def _frozen(model: nn.Module) -> Iterator[Finding]:
    asked = {id(head.weight) for head in model.modules() if isinstance(head, ScaledFrame)}  # by --head etf
    loose = [(n, p) for n, p in model.named_parameters() if not p.requires_grad and id(p) not in asked]
    frozen = [name for name, _ in loose]
    if frozen:
        count = sum(parameter.numel() for _, parameter in loose)
        yield Finding(
            False,
            f"{_some(frozen)}: frozen, {count:,} parameters; they stay as they are, and travel all the same",
        )


def _own_state(model: nn.Module, images: Tensor) -> Iterator[Finding]:
    """Tensors that modules keep as plain attributes and change: these neither travel nor are saved."""
    before = {key: tensor.clone() for key, tensor in _attributes(model)}
    mode = model.training
    with torch.no_grad():
        saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train()(images)
        model.train(mode)
        for name, buffer in model.named_buffers():
            buffer.copy_(saved[name])
    for key, tensor in _attributes(model):
        if key not in before or not torch.equal(before[key], tensor):
            yield Finding(
                False,
                f"{key}: its own state, which changes as the model runs, and neither travels nor is saved; "
                "register it as a buffer",
            )


def _attributes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield f"{name}.{key}".lstrip("."), value


@torch.no_grad()
def _shapes(model: nn.Module, images: Tensor) -> Iterator[Finding]:
    """Whether the answers' shape follows from the images' alone."""
    mode = model.training
    model.eval()
    try:
        whole = logits(model(images))
        for part in (images[:1], images[:2], torch.zeros_like(images)):
            answers = logits(model(part))
            if answers.shape != (len(part), *whole.shape[1:]):
                yield Finding(
                    True,
                    f"gives {tuple(answers.shape)} for {len(part)} images, {tuple(whole.shape)} for "
                    f"{len(images)}: its shapes depend on the data; give each image answers of one length",
                )
                return
    except Exception as error:  # a user's model can raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding(True, f"fails on some batches only: its shapes depend on the data ({text})")
    finally:
        model.train(mode)


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
