"""Subspaces of a model's matrices that are followed from one sending to the next.

    M (n, m): a parameter's stretch of the vector, its first dimension times the rest
    P = orthonormalise(M Q);  Q = M^T P         one step of subspace iteration a sending

`first` is where every device begins, `restart` where the next sending does. Matrices are divided by a power
of two first, which is exact, so that no square under- or overflows.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.base import NotFinite
from edgewise.randomness import key
from edgewise.vector import Entry

WARM = "q"  # the memory's only tensor: the Q of every matrix, one after the other
LARGEST = float(torch.finfo(torch.float32).max)
LOWEST_EXPONENT = -112  # the scale of float16, 2^15 times smaller, still has an inverse in float32
NUDGE = 1e-3


def sides(entry: Entry) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix; one of a single dimension is one column."""
    return (entry.shape[0], math.prod(entry.shape[1:])) if entry.shape else (1, 1)


@lru_cache(256)
def first(entry: Entry, rank: int) -> Tensor:
    """The Q (m, rank) that every device starts with, whatever its seed; not to be written to."""
    draws = np.random.Generator(np.random.SFC64(key(0, f"powersgd/{entry.name}")))
    return torch.from_numpy(draws.standard_normal((sides(entry)[1], rank), np.float32)).clone()


def factors(matrix: Tensor, q: Tensor) -> tuple[Tensor, Tensor, float]:
    """P (n, rank), orthonormal, Q (m, rank) and a scale: P (scale * Q)^T stands for the matrix (n, m).

    NotFinite where the matrix is not, or so near the largest float32 that its product could overflow.
    """
    scale = power(matrix, q.shape[1])
    scaled = matrix / scale
    p = torch.linalg.qr(scaled @ q).Q  # orthonormal also where the product's columns are not independent
    return p, scaled.T @ p, scale


def power(matrix: Tensor, rank: int) -> float:
    """The power of two that a matrix (n, m) is divided by; NotFinite as for `factors`."""
    top = largest(matrix)
    # No entry of Q or of the product exceeds sqrt(n) * top. NaN fails the comparison as well.
    if not 4 * rank * math.sqrt(matrix.shape[0]) * top < LARGEST:
        raise NotFinite
    return 2.0 ** max(math.frexp(top)[1], LOWEST_EXPONENT)


def restart(q: Tensor, start: Tensor) -> Tensor:
    """Where the next sending starts: Q (m, rank) with columns of norm 1, and a little of the first Q.

    Without that, what is exactly orthogonal to Q (after zeros: everything) would never be found again.
    """
    norms = q.norm(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    return (q / norms).add_(start, alpha=NUDGE / math.sqrt(len(start)))


def largest(values: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))
