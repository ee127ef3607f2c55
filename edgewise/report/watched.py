"""What a round told of drift and forgetting, read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

TIMES = ("start", "local", "averaged")  # of a round: before local training, after it, after averaging
Three = tuple[float, ...]


@dataclass(frozen=True)
class Watched:
    """What a round told, None where it did not: docs/drift.md. The four last: a number at each of TIMES."""

    drift_cosine: float | None = None
    drift_diversity: float | None = None
    forgetting: float | None = None
    own: Three | None = None
    absent: Three | None = None
    counterforce: Three | None = None
    margin: Three | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Watched:
        """Of a line of rounds.jsonl; TypeError or ValueError for one that is damaged."""
        numbers = {name: row.get(name) for name in ("drift_cosine", "drift_diversity", "forgetting")}
        found: dict[str, Any] = {n: None if v is None else float(v) for n, v in numbers.items()}
        probe = row.get("probe") or {}
        for name in ("own", "absent", "counterforce", "margin"):
            if probe.get(name) is not None:
                _, _, _ = found[name] = tuple(float(value) for value in probe[name])
        return cls(**found)

    def flat(self) -> dict[str, float | None]:
        """One name a number, for CSV."""
        found: dict[str, float | None] = {}
        for slot in fields(self):
            value = getattr(self, slot.name)
            if slot.name in THREES:
                names = [f"{slot.name}_{time}" for time in TIMES]
                found |= dict(zip(names, value or (None, None, None), strict=True))
            else:
                found[slot.name] = value
        return found


THREES = ("own", "absent", "counterforce", "margin")
COLUMNS = tuple(Watched().flat())
