"""Small helpers for costs that broadcast over numbers and numpy arrays alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reals = float | int | NDArray[np.float64] | NDArray[np.int64]
"""A number or an array of numbers; costs broadcast and return float64 arrays (0-d for plain numbers)."""


def as_floats(*values: Reals) -> list[Array]:
    """The values as float64 arrays, so that no product of counts overflows an integer."""
    return [np.asarray(v, dtype=np.float64) for v in values]


def soft_max(a: Array, b: Array, sharpness: float) -> Array:
    """``(a^p + b^p)^(1/p)`` with ``p = sharpness >= 1``: never below ``max(a, b)``, at most ``a + b``; scaled so nothing overflows."""
    top = np.maximum(np.maximum(a, b), 1e-300)
    low = np.minimum(a, b) / top
    out: Array = top * (1 + low**sharpness) ** (1 / sharpness)
    return out
