"""A model whose batch norms become another norm, with the weights it has, reported layer by layer.

made = edgewise.convert(model, "group", example)
print(made.text)          # what became of each norm, and how far the answers moved
train(made.model)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise import specs
from edgewise.conversion import fixup
from edgewise.conversion.flow import Flow, replace_module, trace
from edgewise.conversion.folding import fold
from edgewise.conversion.layers import convert_layer, rebuilt
from edgewise.conversion.recalibration import recalibrate
from edgewise.conversion.residual import branches
from edgewise.errors import EdgewiseError
from edgewise.models.norms import (
    NORMS,
    Batch,
    BatchFrozen,
    BatchLocal,
    BatchSync,
    Instance,
    NoNorm,
    Norm,
    WSConv2d,
)

FIXUP = "fixup"
LEGAL = [*NORMS, FIXUP]
SAME = 1e-4  # of the answers' largest magnitude: what is exact on paper may differ by in float32


@dataclass(frozen=True)
class Change:
    """What became of one layer. `moved`: on what it took, how far its answers moved, as a share of their
    deviation (None where there is no layer left to compare).
    """

    name: str
    before: str
    after: str
    kept: str
    moved: float | None = None


@dataclass(frozen=True)
class Conversion:
    """A converted model. `difference`: largest change of a logit on the example, in evaluation; `scale`: the
    largest logit before; `agreement`: share of the examples with the same largest logit; `exact`: whether
    mathematics says that evaluation answers as before.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    difference: float
    scale: float
    agreement: float
    exact: bool

    @property
    def text(self) -> str:
        """The report, a line a layer."""
        lines = []
        for change in self.changes:
            moved = "" if change.moved is None else f"; answers moved by {change.moved:.1%}"
            kept = f"; kept: {change.kept}" if change.kept else ""
            lines.append(f"{change.name or 'the model'}: {change.before} -> {change.after}{kept}{moved}")
        expected = "the same on paper" if self.exact else "not the same on paper: train it again"
        lines.append(
            f"logits moved by at most {self.difference:.3g} (largest before: {self.scale:.3g}), "
            f"{self.agreement:.0%} of the predictions agree; {expected}"
        )
        return "\n".join(lines)


def convert(model: nn.Module, norm: Norm | str, example: Tensor) -> Conversion:
    """A copy of `model` with every batch norm (also synchronised ones) as `norm`.

    `norm`: a value or the name of one ("group:8", "batch-renorm", ...), or "fixup" for residual nets.
    `example`: a batch (N, ...) as the model takes it, real data if possible: the conversion is measured
    on it. Weights are carried where that means anything: see `layers`. Where it is exact on paper the
    answers are compared, and EdgewiseError tells if they differ; also for an unknown norm, a model
    without batch norms, and a model that fails on the example.
    """
    chosen = norm if not isinstance(norm, str) else None if norm == FIXUP else _parse(norm)
    before = trace(model, example)
    if not before.inputs:
        raise EdgewiseError("convert: the model has no batch norm that is used; there is nothing to convert")
    made = copy.deepcopy(model)
    if chosen is None:
        made, changes, exact = _to_fixup(made, before, example)
    elif isinstance(chosen, NoNorm):
        made, changes, exact = _to_none(made, before, example)
    else:
        made, changes, exact = _to_norm(made, chosen, before)
    after = trace(made, example).output
    difference = float((after - before.output).abs().max())
    scale = float(before.output.abs().max())
    if exact and not difference <= SAME * max(1.0, scale):
        raise EdgewiseError(
            f"convert: the answers should be the same and moved by {difference:.3g}: the model does not use "
            "its norms as layers; convert it by hand"
        )
    agreement = float((after.argmax(-1) == before.output.argmax(-1)).float().mean())
    return Conversion(made, tuple(changes), difference, scale, agreement, exact)


def _parse(norm: str) -> Norm:
    try:
        parsed: Norm = specs.parse(NORMS, norm, "convert")
    except EdgewiseError as error:
        raise EdgewiseError(f"{error}, {FIXUP}" if "unknown" in str(error) else str(error)) from None
    return parsed


def _to_norm(model: nn.Module, norm: Norm, flow: Flow) -> tuple[nn.Module, list[Change], bool]:
    changes, exact = [], norm.conv is not WSConv2d
    for name, taken in flow.inputs.items():
        old = model.get_submodule(name)
        assert isinstance(old, _BatchNorm)
        _check_dimensions(name, norm, taken)
        new = convert_layer(old, norm)
        moved = _moved(old, new.layer, taken)
        model = replace_module(model, name, new.layer)
        changes.append(Change(name, _kind(old), _kind(new.layer), new.words, moved))
        exact &= new.exact
        if norm.conv is WSConv2d:
            changes += _standardised(model, flow.feeders.get(name))
    return model, changes, exact


def _to_none(model: nn.Module, flow: Flow, example: Tensor) -> tuple[nn.Module, list[Change], bool]:
    folded, names = fold(model, example)
    changes = []
    for name in flow.inputs:
        kept = "weight, bias, running statistics, in the layer before it" if name in names else ""
        changes.append(Change(name, _kind(model.get_submodule(name)), "nothing", kept))
        folded = replace_module(folded, name, nn.Identity())
    return folded.train(model.training), changes, set(flow.inputs) <= set(names)


def _check_dimensions(name: str, norm: Norm, taken: Tensor) -> None:
    if isinstance(norm, Batch | BatchSync | BatchLocal | BatchFrozen) and taken.dim() != 4:
        raise EdgewiseError(f"convert: {name} takes {taken.dim()}-D input; this norm is for (N, C, H, W)")
    if isinstance(norm, Instance) and taken[0, 0].numel() == 1:
        raise EdgewiseError(
            f"convert: {name} sees one value a channel, which instance norm makes zero; take group or layer"
        )


def _standardised(model: nn.Module, feeder: str | None) -> list[Change]:
    conv = None if feeder is None else model.get_submodule(feeder)
    if feeder is None or type(conv) is not nn.Conv2d:
        return []
    replace_module(model, feeder, rebuilt(WSConv2d, conv))
    return [Change(feeder, "Conv2d", "WSConv2d", "weights, but for each filter's mean and scale")]


def _to_fixup(model: nn.Module, flow: Flow, example: Tensor) -> tuple[nn.Module, list[Change], bool]:
    found = branches(model, example)
    changes = []
    for name in flow.inputs:
        old = model.get_submodule(name)
        fed = name in flow.feeders
        new = nn.Identity() if fed else fixup.Shift(next(model.parameters()))
        model = replace_module(model, name, new)
        changes.append(Change(name, _kind(old), "nothing" if fed else "a scalar bias", ""))
    told = fixup.apply(model, found)
    changes += [Change(name, "layer", words, "") for name, words in told.items()]
    return model, changes, False


@torch.no_grad()
def _moved(old: nn.Module, new: nn.Module, taken: Tensor) -> float:
    """How far the new layer's answers lie from the old one's, root mean square, as a share of their
    spread.
    """
    modes = old.training, new.training
    before, after = old.eval()(taken), new.eval()(taken)
    old.train(modes[0]), new.train(modes[1])
    spread = float(before.std()) or 1.0
    return float((after - before).square().mean().sqrt()) / spread


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.GroupNorm):
        return f"GroupNorm of {layer.num_groups}"
    return type(layer).__name__


__all__ = ["FIXUP", "LEGAL", "Change", "Conversion", "convert", "fold", "recalibrate"]
