"""How devices learn and how the server combines it: one file an algorithm, both halves in it."""

from __future__ import annotations

from typing import Any

from edgewise.algorithms.base import Algorithm, Server
from edgewise.algorithms.fedavg import FedAvg
from edgewise.algorithms.sync_sgd import SyncSGD

ALGORITHMS: dict[str, type[Any]] = {"sync-sgd": SyncSGD, "fedavg": FedAvg}

__all__ = ["ALGORITHMS", "Algorithm", "FedAvg", "Server", "SyncSGD"]
