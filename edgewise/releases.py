"""Releases of a model that goes on learning: which one devices run, what was refused and why, the way back.

A folder with releases.json (the history, and which release is current) and a model.safetensors a release.
Written whole or not at all; what was released once stays, so that rolling back is a change of one number.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgewise import records
from edgewise.errors import EdgewiseError

HISTORY = "releases.json"


@dataclass(frozen=True)
class Standing:
    """Accuracy on what devices hold out: over all of it, and on the device where it is lowest."""

    accuracy: float
    worst: float


@dataclass(frozen=True)
class Event:
    """One line of the history. `kind`: released, refused or rolled back; `before`: how the release that was
    current stood on the same data (None for the first).
    """

    kind: str
    release: int | None
    reason: str
    candidate: Standing | None = None
    before: Standing | None = None


@dataclass(frozen=True)
class Releases:
    """The releases in a folder. Values: `offer` and `roll_back` return the next one, and write it down."""

    folder: Path
    current: int | None = None
    events: tuple[Event, ...] = field(default_factory=tuple)

    @classmethod
    def read(cls, folder: str | Path) -> Releases:
        """What a folder holds; nothing if it holds none yet. EdgewiseError for a damaged history."""
        folder = Path(folder)
        path = folder / HISTORY
        if not path.exists():
            return cls(folder)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            events = tuple(_event(event) for event in content["events"])
            current = content["current"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EdgewiseError(f"{path}: not a readable history of releases ({error})") from None
        return cls(folder, current, events)

    def weights(self, release: int | None = None) -> Path:
        """The model.safetensors of a release, by default the current one; EdgewiseError if there is none."""
        number = self.current if release is None else release
        path = self.folder / f"release-{number:03}.safetensors" if number is not None else self.folder
        if number is None or not path.is_file():
            raise EdgewiseError(f"{self.folder}: holds no release {'yet' if number is None else number}")
        return path

    def offer(
        self, weights: Path, candidate: Standing, before: Standing | None, tolerance: float = 0.0
    ) -> Releases:
        """Release `weights` if it is no worse than the current release, over all and on the worst device.

        Both stand on the same held-out data. `tolerance`: how much accuracy either may lose.
        """
        reason = _objection(candidate, before, tolerance)
        if reason:
            return self._add(Event("refused", self.current, reason, candidate, before))
        number = 1 + max((e.release for e in self.events if e.kind == "released" and e.release), default=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = weights.read_bytes()
        except OSError as error:
            raise EdgewiseError(f"{weights}: cannot be released ({error.strerror})") from None
        records.write(self.folder / f"release-{number:03}.safetensors", content)
        told = "no worse than the release before it" if before else "the first"
        return replace(self, current=number)._add(Event("released", number, told, candidate, before))

    def roll_back(self, to: int | None = None) -> Releases:
        """Make an earlier release current: the one before the current one, or number `to`."""
        released = [e.release for e in self.events if e.kind == "released" and e.release is not None]
        earlier = [number for number in released if self.current is not None and number < self.current]
        number = to if to is not None else max(earlier, default=None)
        if number is None or number not in released:
            legal = ", ".join(map(str, released)) or "none"
            what = "before the current one" if to is None else str(to)
            raise EdgewiseError(f"{self.folder}: no release {what} to go back to; there are: {legal}")
        told = f"from release {self.current}"
        return replace(self, current=number)._add(Event("rolled back", number, told))

    def _add(self, event: Event) -> Releases:
        made = replace(self, events=(*self.events, event))
        content = {"current": made.current, "events": [asdict(event) for event in made.events]}
        self.folder.mkdir(parents=True, exist_ok=True)
        records.write(self.folder / HISTORY, json.dumps(content, indent=2) + "\n")
        return made


def _event(content: dict[str, Any]) -> Event:
    standings = {
        name: None if content[name] is None else Standing(**content[name]) for name in ("candidate", "before")
    }
    return Event(**{**content, **standings})


def _objection(candidate: Standing, before: Standing | None, tolerance: float) -> str:
    """Why not to release, or nothing."""
    if before is None:
        return ""
    for what, new, old in (
        ("over all devices", candidate.accuracy, before.accuracy),
        ("on the worst device", candidate.worst, before.worst),
    ):
        if not new >= old - tolerance:  # NaN neither
            return f"accuracy {what} would fall from {old:.1%} to {new:.1%}"
    return ""
