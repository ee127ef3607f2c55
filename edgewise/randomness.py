"""Addressed randomness: a draw's generator is keyed by what it is for, never by what came before."""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, purpose: str, device: int = 0, index: int = 0) -> int:
    """A 63-bit integer for this address, the same on every machine and in every Python."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{device}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, device: int = 0, index: int = 0) -> torch.Generator:
    """A CPU generator seeded with `key(seed, purpose, device, index)`."""
    return torch.Generator().manual_seed(key(seed, purpose, device, index))
