"""What a round tells of itself: how far devices drift apart, and what averaging mends.

All of it is measured on the coordinator, from the updates that came: no device does or sends anything more.
docs/drift.md says what each number means.
"""

from __future__ import annotations

from edgewise.diagnosis.drift import Drift
from edgewise.diagnosis.effort import DIAGNOSES, Diagnose, Effort, Full, Light, Looks, Off
from edgewise.diagnosis.forgetting import forgotten, highest
from edgewise.diagnosis.probe import Probe, Probed
from edgewise.diagnosis.watch import Watch, Watching

__all__ = [
    "DIAGNOSES",
    "Diagnose",
    "Drift",
    "Effort",
    "Full",
    "Light",
    "Looks",
    "Off",
    "Probe",
    "Probed",
    "Watch",
    "Watching",
    "forgotten",
    "highest",
]
