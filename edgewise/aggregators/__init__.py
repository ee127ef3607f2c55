"""How the coordinator combines a round's updates: one file a rule.

An aggregator is a frozen dataclass: its fields are its settings, and what a round gathers lives in what
`start` returns. To add one: a file here, a line in AGGREGATORS, and tests/test_aggregators.py covers it.
"""

from __future__ import annotations

from edgewise.aggregators.base import Aggregator, Gathering
from edgewise.aggregators.clip import Clip, ClipMedian
from edgewise.aggregators.fedexp import FedExP
from edgewise.aggregators.krum import Krum, MultiKrum
from edgewise.aggregators.mean import WeightedMean
from edgewise.aggregators.median import Median
from edgewise.aggregators.trimmed import TrimmedMean

AGGREGATORS: dict[str, type[Aggregator]] = {
    "mean": WeightedMean,
    "median": Median,
    "trimmed": TrimmedMean,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "clip": Clip,
    "clip-median": ClipMedian,
    "fedexp": FedExP,
}

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Clip",
    "ClipMedian",
    "FedExP",
    "Gathering",
    "Krum",
    "Median",
    "MultiKrum",
    "TrimmedMean",
    "WeightedMean",
]
