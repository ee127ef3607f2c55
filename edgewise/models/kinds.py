"""Kinds of parameters, for settings that differ by coordinate (weight decay, learning rate)."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from edgewise.errors import EdgewiseError

LOCAL = "local"
SWITCH = "switch"
KINDS = ("weight", "bias", "norm", "scalar", "frozen", LOCAL)
_NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def kind(model: nn.Module, parameter_name: str) -> str:
    """The kind of one parameter, one of `KINDS`.

    norm: affine parameters of a normalisation layer; bias: other 1-D biases; scalar: what a model says is
    one (Fixup's biases and scales); frozen: what requires no gradient, and so stays as it is; local: what
    every device has for itself and never sends; weight: the rest. A model, or the module that holds the
    parameter (by its name there), overrides with a method `parameter_kind(name) -> str | None`, where None
    leaves the answer to these rules. AttributeError for a name the model lacks, EdgewiseError for a kind
    that does not exist.
    """
    parameter = model.get_parameter(parameter_name)
    if not parameter.requires_grad:
        return "frozen"
    owner, _, leaf = parameter_name.rpartition(".")
    for module, name in ((model, parameter_name), (model.get_submodule(owner), leaf)):
        override = getattr(module, "parameter_kind", None)
        chosen = override(name) if callable(override) else None
        if chosen is not None and chosen not in KINDS:
            raise EdgewiseError(f"parameter_kind({name!r}) is {chosen!r}; use one of {', '.join(KINDS)}")
        if chosen is not None:
            return str(chosen)
    if isinstance(model.get_submodule(owner), _NORM_LAYERS):
        return "norm"
    return "bias" if parameter.ndim <= 1 and "bias" in leaf else "weight"


def kinds(model: nn.Module) -> dict[str, str]:
    """Kind by name, in the order of `named_parameters`."""
    return {name: kind(model, name) for name, _ in model.named_parameters()}


def buffer_kinds(model: nn.Module) -> dict[str, str]:
    """The same for buffers, in the order of `named_buffers`: local where the module that holds one says so

    (`local_buffers` is true), switch where it has it among its `switches`, which the coordinator sets; else
    buffer.
    """
    return {name: _buffer_kind(model, name) for name, _ in model.named_buffers()}


def _buffer_kind(model: nn.Module, name: str) -> str:
    owner = model.get_submodule(name.rpartition(".")[0])
    if name.rpartition(".")[2] in getattr(owner, "switches", ()):
        return SWITCH
    return LOCAL if getattr(owner, "local_buffers", False) else "buffer"
