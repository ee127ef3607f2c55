"""Ways to reach devices. Each gives a cohort the task and yields the replies in the cohort's order.

`inline` is the reference; tests/test_engines.py holds every other way to it.
"""

from __future__ import annotations

from edgewise.cohorts import first
from edgewise.engines.base import Engine
from edgewise.engines.batched import Batched
from edgewise.engines.fused import Fused
from edgewise.engines.inline import Inline

ENGINES = ("inline", "torchrun", "fleet")

__all__ = ["ENGINES", "Batched", "Engine", "Fused", "Inline", "first"]
