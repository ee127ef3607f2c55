"""Codecs: update -> bytes -> update.

A codec is a frozen dataclass: its fields are its settings, and what it must remember from one round to the
next goes in and comes out as `memory`. `encode` returns the very bytes that travel, so `len(payload)` is the
traffic: nothing is estimated. To add one: a file here, a line in CODECS, and tests/test_codecs.py covers it.
"""

from __future__ import annotations

from edgewise.codecs.base import Codec
from edgewise.codecs.raw import Raw

CODECS: dict[str, type[Codec]] = {"none": Raw}

__all__ = ["CODECS", "Codec", "Raw"]
