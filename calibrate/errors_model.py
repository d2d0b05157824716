"""Expected errors of prices, learned from rows left out of the fit: intervals by size of the price, wider beyond the measured sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..costmodels.arrays import Array, Rows

COVERAGE = 0.8
"""Share of left-out rows an interval holds."""

ROWS_PER_BIN = 60
MAX_BINS = 6


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """Median and 90th percentile of the relative error; interval half widths by price; error added per octave beyond the data."""

    median_frac: float
    p90_frac: float
    edges_s: tuple[float, ...]
    widths_frac: tuple[float, ...]
    beyond_frac: float


UNKNOWN = ErrorModel(0.2, 0.5, (), (), 0.2)
"""What is said of prices when no row was left out to learn from."""


def learn(seconds: Array, log_errors: Array, beyond: Array, octaves: Array) -> ErrorModel:
    """The error model of a family from left-out rows.

    ``log_errors`` is ``ln(predicted/measured)`` of rows left out at random, ``seconds`` their predictions, ``beyond`` the same errors
    of the largest two octaves when those were left out, ``octaves`` how far each lay past the largest size kept. Interval half width of
    a bin: the 80th percentile of ``|exp(error) − 1|``.
    """
    error = np.abs(np.expm1(log_errors))
    if not len(error):
        return UNKNOWN
    order = np.argsort(seconds, kind="stable")
    bins = np.array_split(order, int(np.clip(len(error) // ROWS_PER_BIN, 1, MAX_BINS)))
    edges = (0.0, *(float(f"{seconds[b[0]]:.4g}") for b in bins[1:]))
    widths = tuple(float(f"{np.quantile(error[b], COVERAGE):.3g}") for b in bins)
    return ErrorModel(float(np.median(error)), float(np.quantile(error, 0.9)), edges, widths, growth(error, beyond, octaves))


def growth(near: Array, beyond: Array, octaves: Array) -> float:
    """Error added per octave past the data: the slope, through the error near it, of the 80th percentiles of each octave left out."""
    if not len(beyond):
        return 0.0
    far, base = np.abs(np.expm1(beyond)), float(np.quantile(near, COVERAGE))
    steps = [octaves[at].mean() for at in _by_octave(octaves)]
    added = [np.quantile(far[at], COVERAGE) - base for at in _by_octave(octaves)]
    return float(f"{max(0.0, float(np.dot(steps, added) / np.dot(steps, steps))):.3g}")


def _by_octave(octaves: Array) -> list[Rows]:
    number = np.ceil(octaves)
    return [np.nonzero(number == n)[0] for n in np.unique(number)]


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
