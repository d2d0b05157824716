"""Expected errors of prices, learned from rows left out of the fit: intervals by size of the price, wider beyond the measured sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..costmodels.arrays import Array

COVERAGE = 0.8
"""Share of left-out rows an interval holds."""

ROWS_PER_BIN = 60
MAX_BINS = 6
TYPICAL_OCTAVES = 1.5
"""How far beyond the rest the largest two octaves of a size lie on average."""


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """Median and 90th percentile of the relative error; interval half widths by price; error added per octave beyond the data."""

    median_frac: float
    p90_frac: float
    edges_s: tuple[float, ...]
    widths_frac: tuple[float, ...]
    beyond_frac: float


def learn(seconds: Array, log_errors: Array, beyond: Array) -> ErrorModel:
    """The error model of a family from left-out rows.

    ``log_errors`` is ``ln(predicted/measured)`` of rows left out at random, ``seconds`` their predictions, ``beyond`` the same errors
    of the largest two octaves when those were left out. Interval half width of a bin: the 80th percentile of ``|exp(error) − 1|``.
    """
    error = np.abs(np.expm1(log_errors))
    if not len(error):
        return ErrorModel(0.2, 0.5, (), (), 0.2)
    order = np.argsort(seconds)
    bins = np.array_split(order, int(np.clip(len(error) // ROWS_PER_BIN, 1, MAX_BINS)))
    edges = (0.0, *(float(f"{seconds[b[0]]:.4g}") for b in bins[1:]))
    widths = tuple(float(f"{np.quantile(error[b], COVERAGE):.3g}") for b in bins)
    far = np.quantile(np.abs(np.expm1(beyond)), COVERAGE) if len(beyond) else 0.0
    slope = max(0.0, float(far - np.quantile(error, COVERAGE))) / TYPICAL_OCTAVES
    return ErrorModel(float(np.median(error)), float(np.quantile(error, 0.9)), edges, widths, float(f"{slope:.3g}"))


def coverage(seconds: Array, log_errors: Array, model: ErrorModel) -> float:
    """Share of rows whose relative error lies within the interval of their price."""
    at = np.clip(np.searchsorted(model.edges_s, seconds, side="right") - 1, 0, len(model.edges_s) - 1)
    return float(np.mean(np.abs(np.expm1(log_errors)) <= np.asarray(model.widths_frac)[at]))


def combine(parts_s: Array, errors_frac: Array) -> float:
    """Relative error of a sum of prices: half as if independent, half as if fully shared (kernels of one step share shapes).

    ``√(½·Σ(t·e)² + ½·(Σ t·e)²) / Σ t``.
    """
    weighted = np.asarray(parts_s) * np.asarray(errors_frac)
    total = float(np.sum(parts_s))
    return float(np.sqrt(0.5 * np.sum(weighted**2) + 0.5 * np.sum(weighted) ** 2) / total) if total > 0 else 0.0
