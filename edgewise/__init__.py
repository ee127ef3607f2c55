"""Train one model on many devices whose data never leaves them and never looks alike.

    for round in edgewise.run(Config(partition=Labels(2), norm=Group(), epochs=10), out="runs/group"):
        print(round.step, round.train_loss, round.accuracy)

A run is rounds; in a round the coordinator broadcasts its state, every device of the cohort takes K steps on
its own data and answers with an update, and the coordinator takes one step with their mean:

    data/ -> local.py -> vector.py -> codecs/ -> engines/ -> algorithms/ -> evaluate.py

`device.py` strings together what runs on a device, `rounds.py` what runs on the coordinator. Start there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.algorithms import (
        SAM,
        Centralise,
        Clip,
        FedACG,
        FedAdam,
        FedAvg,
        FedCM,
        FedDyn,
        FedLC,
        FedLMD,
        FedNova,
        FedNTD,
        FedProx,
        FedRS,
        FedYogi,
        Scaffold,
        SyncSGD,
    )
    from edgewise.config import Config
    from edgewise.conversion import Conversion, convert, fold, recalibrate
    from edgewise.data import Dataset, collect
    from edgewise.data.partition import Dirichlet, Iid, Labels, Quantity
    from edgewise.errors import EdgewiseError, EdgewiseWarning
    from edgewise.exports import Export, export
    from edgewise.inspection import Inspection, inspect
    from edgewise.models.heads import Etf, FeatureNorm
    from edgewise.models.norms import (
        Batch,
        BatchFrozen,
        BatchLocal,
        BatchRenorm,
        BatchSync,
        Group,
        GroupWS,
        Instance,
        Layer,
        NoNorm,
    )
    from edgewise.objectives import BinaryCrossEntropy, CrossEntropy, SquaredError
    from edgewise.optimizers import SGD
    from edgewise.releases import Releases
    from edgewise.rounds import Round, run
    from edgewise.schedules import Constant, Cosine, Plateau, Step
    from edgewise.trained import Trained

_HOMES = {
    "edgewise.algorithms": (
        "SAM",
        "Centralise",
        "Clip",
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
        "Scaffold",
        "SyncSGD",
    ),
    "edgewise.config": ("Config",),
    "edgewise.conversion": ("Conversion", "convert", "fold", "recalibrate"),
    "edgewise.data": ("Dataset", "collect"),
    "edgewise.data.partition": ("Dirichlet", "Iid", "Labels", "Quantity"),
    "edgewise.errors": ("EdgewiseError", "EdgewiseWarning"),
    "edgewise.exports": ("Export", "export"),
    "edgewise.inspection": ("Inspection", "inspect"),
    "edgewise.models.heads": ("Etf", "FeatureNorm"),
    "edgewise.models.norms": (
        "Batch",
        "BatchFrozen",
        "BatchLocal",
        "BatchRenorm",
        "BatchSync",
        "Group",
        "GroupWS",
        "Instance",
        "Layer",
        "NoNorm",
    ),
    "edgewise.objectives": ("BinaryCrossEntropy", "CrossEntropy", "SquaredError"),
    "edgewise.optimizers": ("SGD",),
    "edgewise.releases": ("Releases",),
    "edgewise.rounds": ("Round", "run"),
    "edgewise.schedules": ("Constant", "Cosine", "Plateau", "Step"),
    "edgewise.trained": ("Trained",),
}

__all__ = [
    "SAM",
    "SGD",
    "Batch",
    "BatchFrozen",
    "BatchLocal",
    "BatchRenorm",
    "BatchSync",
    "BinaryCrossEntropy",
    "Centralise",
    "Clip",
    "Config",
    "Constant",
    "Conversion",
    "Cosine",
    "CrossEntropy",
    "Dataset",
    "Dirichlet",
    "EdgewiseError",
    "EdgewiseWarning",
    "Etf",
    "Export",
    "FeatureNorm",
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
    "Group",
    "GroupWS",
    "Iid",
    "Inspection",
    "Instance",
    "Labels",
    "Layer",
    "NoNorm",
    "Plateau",
    "Quantity",
    "Releases",
    "Round",
    "Scaffold",
    "SquaredError",
    "Step",
    "SyncSGD",
    "Trained",
    "collect",
    "convert",
    "export",
    "fold",
    "inspect",
    "recalibrate",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `edgewise --help` need not wait for PyTorch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'edgewise' has no attribute {name!r}")
