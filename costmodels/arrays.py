"""Small helpers for costs that broadcast over numbers and numpy arrays alike."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reals = float | int | NDArray[np.float64] | NDArray[np.int64]
"""A number or an array of numbers; costs broadcast and return float64 arrays (0-d for plain numbers)."""

Rows = NDArray[np.intp]
"""Indices of rows."""

CHUNK = 8192
"""Points priced at a time: their temporaries stay in the core's cache."""


def as_floats(*values: Reals) -> list[Array]:
    """The values as float64 arrays, so that no product of counts overflows an integer."""
    return [np.asarray(v, dtype=np.float64) for v in values]


def as_integers(values: NDArray[np.float64] | NDArray[np.int64]) -> array[int]:
    """The values as whole numbers of 8 bytes each, which plain Python reads faster one by one than numpy's."""
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    return array("q", np.ascontiguousarray(rounded, np.int64).tobytes())


def soft_max(a: Array, b: Array, sharpness: float) -> Array:
    """``(a^p + b^p)^(1/p)``, ``p = sharpness`` (1, 2 or 4 without powers): never below ``max(a, b)``, at most ``a + b``; no overflow."""
    if sharpness == 1:
        return a + b
    top = np.maximum(np.maximum(a, b), 1e-300)
    ratio = np.minimum(a, b) / top
    if sharpness in (2, 4):
        square = ratio * ratio
        out = np.sqrt(1 + square) if sharpness == 2 else np.sqrt(np.sqrt(1 + square * square))
    else:
        out = (1 + ratio**sharpness) ** (1 / sharpness)
    return top * out


def in_chunks(price: Callable[..., Array], *values: Array) -> Array:
    """``price(*values)`` over broadcast arrays, in cache-sized pieces when they are long."""
    shape = np.broadcast_shapes(*(v.shape for v in values))
    size = int(np.prod(shape))
    if size <= 2 * CHUNK:
        return price(*values)
    flat = [np.broadcast_to(v, shape).reshape(-1) if v.ndim else v for v in values]
    out = np.empty(size)
    for start in range(0, size, CHUNK):
        piece = slice(start, start + CHUNK)
        out[piece] = price(*(v[piece] if v.ndim else v for v in flat))
    return out.reshape(shape)
