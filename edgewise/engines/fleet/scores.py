"""Evaluations by devices, on what they hold out, made one: of all examples, per class, the worst device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgewise.evaluate import Evaluation


def combine(answers: Sequence[Any], classes: int, apart: bool = False) -> Evaluation:
    """One evaluation of the devices' `Scores` (those that make no sense are left out).

    Per class where every device tells it; else None for each class. `apart`: devices evaluated models of
    their own, so accuracy is the mean over devices, and not over examples.
    """
    usable = [one for one in answers if _sensible(one, classes)]
    right, seen = sum(one.right for one in usable), sum(one.seen for one in usable)
    if not seen:
        return Evaluation(0.0, math.nan, (None,) * classes)
    loss = sum(one.loss * one.seen for one in usable) / seen
    per_class: tuple[float | None, ...] = (None,) * classes
    if all(len(one.seen_each) == classes for one in usable):
        pairs = [
            (sum(one.right_each[c] for one in usable), sum(one.seen_each[c] for one in usable))
            for c in range(classes)
        ]
        per_class = tuple(r / s if s else None for r, s in pairs)
    each = [one.right / one.seen for one in usable]
    return Evaluation(sum(each) / len(each) if apart else right / seen, loss, per_class, min(each))


def _sensible(one: Any, classes: int) -> bool:
    each = list(zip(one.right_each, one.seen_each, strict=False))
    if len(one.right_each) != len(one.seen_each) or len(each) not in (0, classes):
        return False
    if each and (sum(one.right_each), sum(one.seen_each)) != (one.right, one.seen):
        return False
    right = one.right <= one.seen and all(right <= seen for right, seen in each)
    return right and 0 < one.seen <= 1 << 40 and one.loss >= 0  # NaN is not


def row(result: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON; infinity, which JSON has not, as None."""
    loss = result.loss if math.isfinite(result.loss) else None
    return {
        "accuracy": result.accuracy,
        "loss": loss,
        "per_class": list(result.per_class),
        "worst": result.worst,
    }


def read(row: dict[str, Any]) -> Evaluation:
    loss = math.nan if row["loss"] is None else row["loss"]
    return Evaluation(row["accuracy"], loss, tuple(row["per_class"]), row["worst"])
