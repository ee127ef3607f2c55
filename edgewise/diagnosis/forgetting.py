"""What the shared model knew of each class and knows no more.

Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence, Chaudhry et al. 2018,
https://arxiv.org/abs/1801.10112 (there by task; here by class)

    forgetting of class c = max over earlier evaluations of its recall - its recall now
"""

from __future__ import annotations

from collections.abc import Sequence

Recall = Sequence[float | None]  # by class; None for a class without test examples


def forgotten(best: Recall, now: Recall) -> list[float | None]:
    """By class; below 0 where a class is known better than ever, None where it was never looked at before."""
    return [
        None if was is None or value is None else was - value for was, value in zip(best, now, strict=True)
    ]


def highest(best: Recall, now: Recall) -> list[float | None]:
    """The best recall of each class so far. `best` is empty before the first evaluation."""
    pairs = zip(best or [None] * len(now), now, strict=True)
    return [max((v for v in pair if v is not None), default=None) for pair in pairs]


def mean(values: Recall) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
