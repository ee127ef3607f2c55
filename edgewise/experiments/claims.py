"""What the reference says of a run, beside how the run ended, and a word: matches, above, falls short.

Most of what it says is in words ("a little lower"). A claim holds them with the numbers that we take them to
mean; those are on the page too, so that a reader can take them otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewise import records

MATCHES, ABOVE, SHORT, SILENT = "matches", "above", "falls short", "no number in the post"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: accuracies in 0..1, None where there was no evaluation.

    `accuracy` is that at the end; None where training diverged, after `step` steps.
    """

    accuracy: float | None
    last10: float | None
    best: float | None
    step: int
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """Of a run that finished or diverged."""
        rows = records.rows(folder)
        step, seconds = rows[-1]["step"] if rows else 0, sum(row["seconds"] for row in rows)
        accuracies = [row["accuracy"] for row in rows if "accuracy" in row]
        if not accuracies:
            return cls(None, None, None, step, seconds)
        tail = accuracies[-10:]
        end = None if records.diverged(folder) else accuracies[-1]
        return cls(end, sum(tail) / len(tail), max(accuracies), step, seconds)


@dataclass(frozen=True)
class Claim:
    """The reference's words, and the accuracies at the end, in 0..1, that they are taken to mean.

    From `low` to `high`; beside the run `of`, how far from its accuracy. Without both there is nothing to
    compare.
    """

    words: str
    low: float | None = None
    high: float | None = None
    of: str | None = None

    def verdict(self, own: Outcome, others: Mapping[str, Outcome]) -> str:
        """One word. A run that diverged has learned nothing, and nothing is held against it."""
        base = others[self.of].accuracy if self.of else 0.0
        if base is None or (self.low is None and self.high is None):
            return SILENT
        # To a millionth: 0.62 - 0.6 is 0.02, not a little more.
        found = round((own.accuracy or 0.0) - base, 6)
        if self.low is not None and found < self.low:
            return SHORT
        return ABOVE if self.high is not None and found > self.high else MATCHES

    def rule(self, labels: Mapping[str, str]) -> str:
        """What matches, in words; `labels` of runs by name."""
        if self.low is None and self.high is None:
            return ""
        if self.of is None:
            low, high = (None if end is None else f"{end:.0%}" for end in (self.low, self.high))
            return _span(low, high)
        low, high = (None if end is None else f"{100 * end:+g}" for end in (self.low, self.high))
        return f"{_span(low, high)} points from {labels[self.of]}"


def _span(low: str | None, high: str | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"{low} to {high}"
