"""How devices learn and how the server combines it: one file an algorithm, both halves in it.

In text an algorithm is `sync-sgd`, `fedavg`, or what is added to fedavg, joined with "+":

    "fedprox:0.1"          FedAvg(parts=(FedProx(0.1),))
    "fedlmd+fedcm:0.2"     FedAvg(parts=(FedLMD(), FedCM(0.2)))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from edgewise import specs
from edgewise.algorithms.base import Algorithm, Combined, Learned, Own, Server
from edgewise.algorithms.centralise import Centralise
from edgewise.algorithms.clip import Clip
from edgewise.algorithms.fedacg import FedACG
from edgewise.algorithms.fedadam import FedAdam, FedYogi
from edgewise.algorithms.fedavg import FedAvg
from edgewise.algorithms.fedcm import FedCM
from edgewise.algorithms.feddyn import FedDyn
from edgewise.algorithms.fedlc import FedLC
from edgewise.algorithms.fedlmd import FedLMD
from edgewise.algorithms.fednova import FedNova
from edgewise.algorithms.fedntd import FedNTD
from edgewise.algorithms.fedprox import FedProx
from edgewise.algorithms.fedrs import FedRS
from edgewise.algorithms.places import DRIFT, Loss, Part, Turns
from edgewise.algorithms.sam import SAM
from edgewise.algorithms.scaffold import Scaffold
from edgewise.algorithms.sync_sgd import SyncSGD
from edgewise.errors import EdgewiseError
from edgewise.optimizers import SGD

PARTS: dict[str, type[Any]] = {
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "fednova": FedNova,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedcm": FedCM,
    "fedacg": FedACG,
    "fedlc": FedLC,
    "fedrs": FedRS,
    "fedntd": FedNTD,
    "fedlmd": FedLMD,
    "sam": SAM,
    "centralise": Centralise,
    "clip": Clip,
}
MOMENTUM = 0.9  # the server's, of fedavgm
ALGORITHMS: dict[str, Algorithm] = {
    "sync-sgd": SyncSGD(),
    "fedavg": FedAvg(),
    "fedavgm": FedAvg(server_momentum=MOMENTUM),
    **{name: FedAvg(parts=(part(),)) for name, part in PARTS.items()},
}
PLUS = "+"
BETWEEN = re.compile(r"(?<!\de)\+")  # but not that of a number: 1e+06


def parse(text: str, sgd: SGD, also: Sequence[str] = (), **given: Any) -> Algorithm:
    """The algorithm that `text` stands for, with `given` fields; EdgewiseError with what is legal.

    `also`: what else is legal where the text comes from.
    """
    words = BETWEEN.split(str(text))
    if words == ["sync-sgd"]:
        return _made(SyncSGD, "sync-sgd", sgd, given)
    parts = []
    for word in words:
        if word == "fedavgm":
            given.setdefault("server_momentum", MOMENTUM)
        elif word != "fedavg":
            if word.split(":")[0] not in PARTS:
                raise EdgewiseError(f"algorithm: {text!r} is unknown; one of: {', '.join([*forms(), *also])}")
            parts.append(specs.parse(PARTS, word, "algorithm"))
    return _made(FedAvg, text, sgd, given | {"parts": tuple(parts)})


def text(algorithm: Algorithm) -> str:
    """The text form of an algorithm; a server's momentum is not in it."""
    if isinstance(algorithm, SyncSGD):
        return "sync-sgd"
    parts = algorithm.parts if isinstance(algorithm, FedAvg) else ()
    return PLUS.join(specs.text(PARTS, part) for part in parts) or "fedavg"


def losses(algorithm: Algorithm) -> list[str]:
    """The names of its parts that put another loss in place of cross-entropy."""
    parts = algorithm.parts if isinstance(algorithm, FedAvg) else ()
    return [specs.name_of(PARTS, part) for part in parts if isinstance(part, Loss)]


def reads_updates(algorithm: Algorithm) -> bool:
    """Whether the server takes devices' gradients, or their momentum, from the mean update."""
    parts = algorithm.parts if isinstance(algorithm, FedAvg) else ()
    return any(DRIFT in part.places and isinstance(part, Turns) for part in parts)


def with_part(algorithm: Algorithm, old: Part, new: Part) -> Algorithm:
    """The algorithm with one part in another's place."""
    assert isinstance(algorithm, FedAvg)
    return replace(algorithm, parts=tuple(new if part is old else part for part in algorithm.parts))


def forms() -> list[str]:
    """Every legal form, for messages."""
    return [name if name not in PARTS else specs.form(name, PARTS[name]) for name in ALGORITHMS]


def _made(kind: type[Any], name: str, sgd: SGD, given: dict[str, Any]) -> Algorithm:
    own = {slot.name for slot in fields(kind)}
    for key in given:
        if key not in own:
            raise EdgewiseError(f"{key}: {name} has none; it belongs to fedavg and what is added to it")
    return kind(sgd=sgd, **given)


__all__ = [
    "ALGORITHMS",
    "PARTS",
    "SAM",
    "Algorithm",
    "Centralise",
    "Clip",
    "Combined",
    "FedACG",
    "FedAdam",
    "FedAvg",
    "FedCM",
    "FedDyn",
    "FedLC",
    "FedLMD",
    "FedNTD",
    "FedNova",
    "FedProx",
    "FedRS",
    "FedYogi",
    "Learned",
    "Own",
    "Scaffold",
    "Server",
    "SyncSGD",
    "losses",
    "parse",
    "reads_updates",
    "text",
    "with_part",
]
