"""How long 16-bit products took in the libraries of 2023 and 2024, against those of the measured tables (2026)."""

from __future__ import annotations

import numpy as np

from .arrays import Array, as_floats

ROWS = (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
FACTORS = {
    "ampere": (0.937, 0.972, 1.004, 1.112, 1.094, 1.138, 1.183, 1.194),
    "hopper": (1.013, 1.069, 1.158, 1.272, 1.409, 1.297, 1.163, 1.112),
}
"""By architecture and rows: medians of measured time over our price of products whose weights are over 30 MB, on A100 and H100.
Source: Vidur's compute profiles (microsoft/vidur @7d47513, MIT), 11,377 and 4,270 products; a bin is half an octave to both sides."""


def older_factor(arch: str, rows: Array) -> Array:
    """Time of a product of so many rows over that of the measured tables, linear in the logarithm of rows; 1 on other architectures."""
    (m,) = as_floats(rows)
    factors = FACTORS.get(arch)
    return np.interp(np.log2(np.maximum(m, 1)), np.log2(ROWS), factors) if factors else np.ones_like(m)
