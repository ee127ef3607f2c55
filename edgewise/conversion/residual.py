"""Where a model's residual branches are, read off its graph: which convolutions lie on which branch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgewise.errors import EdgewiseError

CONV = ("conv1d", "conv2d", "conv3d", "convolution")
ADD = ("add", "add_")


@dataclass(frozen=True)
class Branch:
    """A residual addition: the convolutions of the branch, in order, and those of its shortcut, by name."""

    convs: tuple[str, ...]
    shortcut: tuple[str, ...]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes that PyTorch's exporters log and warn about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def branches(model: nn.Module, example: Tensor) -> list[Branch]:
    """The residual branches of `model`, which runs on `example` (N, ...), first to last.

    An addition of two things that come from one place is residual if a convolution lies on a way to it; the
    way with more of them is the branch. EdgewiseError where PyTorch cannot export the model's graph.
    """
    mode = model.training
    try:
        with quiet():
            graph = torch.export.export(model.eval(), (example,)).graph
    except Exception as error:  # torch.export raises many kinds of its own
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise EdgewiseError(f"model: its graph cannot be read for Fixup: {text}") from error
    finally:
        model.train(mode)
    nodes = list(graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    reach: dict[Node, frozenset[Node]] = {}
    for node in nodes:
        reach[node] = frozenset({node}).union(*(reach[source] for source in node.all_input_nodes))
    found = [_branch(node, reach, place) for node in nodes if _kind(node) in ADD]
    return [branch for branch in found if branch is not None]


def _kind(node: Node) -> str:
    return getattr(node.target, "__name__", "").split(".")[0] if node.op == "call_function" else ""


def _branch(node: Node, reach: dict[Node, frozenset[Node]], place: dict[Node, int]) -> Branch | None:
    if len(node.all_input_nodes) != 2:
        return None
    one, other = node.all_input_nodes
    activations = {n for n in reach[one] & reach[other] if n.op == "call_function" or _is_input(n)}
    if not activations:
        return None
    fork = max(activations, key=lambda n: place[n])
    sides = [_convs(end, fork, reach, place) for end in (one, other)]
    convs, shortcut = sorted(sides, key=len, reverse=True)
    return Branch(tuple(convs), tuple(shortcut)) if convs else None


def _is_input(node: Node) -> bool:
    return node.op == "placeholder" and not node.name.startswith(("p_", "b_", "c_"))


def _convs(end: Node, fork: Node, reach: dict[Node, frozenset[Node]], place: dict[Node, int]) -> list[str]:
    """The modules of the convolutions between `fork` and `end`."""
    between = sorted((n for n in reach[end] if fork in reach[n] and n is not fork), key=lambda n: place[n])
    stacks = [list(n.meta["nn_module_stack"].values())[-1][0] for n in between if _kind(n) in CONV]
    return list(dict.fromkeys(stacks))
