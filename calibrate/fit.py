"""Fits the families of one GPU: a trend, then corrections tabulated from its residuals, then the errors of rows left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..costmodels.arrays import Array, Rows
from ..costmodels.grid_curve import GridCurve
from .curves import Bound
from .grid_fit import fit_table, nodes_of
from .trend_fit import fit_trend

CODE_RANGE = 127

Axes = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A packed correction: node values per axis, int8 codes, and their unit in ln."""

    axes: Axes
    codes: NDArray[np.int8]
    step: float

    def curve(self) -> GridCurve:
        """The correction as it will be evaluated."""
        return GridCurve.of(self.axes, self.codes.astype(np.float32) * np.float32(self.step))

    def packed(self) -> NDArray[np.int8]:
        """The codes as differences along the first axis (wrapping), which pack smaller: neighbours are alike."""
        return np.diff(self.codes, axis=0, prepend=np.zeros_like(self.codes[:1])).ravel()


@dataclass(frozen=True, slots=True)
class Fitted:
    """Coefficients of a family's trend, its correction, and the second correction of single shapes if it has one."""

    coefficients: dict[str, float]
    table: Table
    own: Table | None = None

    def predict(self, bound: Bound, at: Rows) -> Array:
        """Seconds of the rows ``at``, never below their floor."""
        log = self.table.curve().log_factor(*(x[at] for x in bound.coordinates))
        if self.own is not None:
            log = log + self.own.curve().log_factor(*(x[at] for x in bound.own_coordinates))
        return np.maximum(bound.trend(self.coefficients, at) * np.exp(log.astype(np.float64)), bound.floor_s[at])


def fit_family(bound: Bound, at: Rows, seed: int = 0) -> Fitted:
    """Fit one family on the rows ``at``."""
    seconds = bound.seconds[at]
    coefficients = fit_trend(lambda c, i: bound.trend(c, at[i]), seconds, bound.start, bound.choices, seed, bound.pull)
    residual = np.log(seconds / bound.trend(coefficients, at))
    coordinates = tuple(x[at] for x in bound.coordinates)
    table = _tabulate(coordinates, residual, bound.strengths, bound.bends, bound.min_octaves, bound.unit)
    if not bound.own_coordinates:
        return Fitted(coefficients, table)
    left = residual - table.curve().log_factor(*coordinates).astype(np.float64)
    own = tuple(x[at] for x in bound.own_coordinates)
    numbers = np.arange(1.0, len(bound.labels) + 1)
    return Fitted(coefficients, table, _tabulate(own, left, bound.own_strengths, (), 0.05, bound.unit, last=numbers))


def _tabulate(
    coordinates: tuple[Array, ...],
    residual: Array,
    strengths: tuple[float, ...],
    bends: tuple[float, ...],
    min_octaves: float,
    unit: float,
    last: Array | None = None,
) -> Table:
    """Fit a correction and pack it into int8; ``last`` gives the nodes of the last axis instead of the values measured."""
    axes = tuple(tuple(nodes_of(x, min_octaves)) for x in coordinates)
    if last is not None:
        axes = (*axes[:-1], tuple(last))
    table = fit_table(axes, coordinates, residual, strengths, bends or (0.0,) * len(axes))
    step = max(unit, float(f"{np.max(np.abs(table)) / CODE_RANGE:.3g}") * 1.01)
    return Table(axes, np.clip(np.rint(table / step), -CODE_RANGE, CODE_RANGE).astype(np.int8), step)


def holdout(bound: Bound, kind: str, frac: float, seed: int) -> NDArray[np.bool_]:
    """Rows left out of a fit: ``rows`` at random, whole ``shapes`` at random, or the largest two octaves of ``size``."""
    rng = np.random.default_rng([seed, len(bound.seconds)])
    if kind == "rows":
        return rng.random(len(bound.seconds)) < frac
    if kind == "shapes":
        shapes = np.unique(bound.shapes)
        return np.isin(bound.shapes, rng.choice(shapes, max(1, round(len(shapes) * frac)), replace=False))
    return bound.size > bound.size.max() / 4


def left_out(bound: Bound, kind: str, frac: float = 0.25, seed: int = 0) -> tuple[Array, Rows]:
    """``ln(predicted / measured)`` of the rows left out of a fit, and which rows they are; empty if too few rows remain."""
    out = holdout(bound, kind, frac, seed)
    train, test = np.nonzero(~out)[0], np.nonzero(out)[0]
    if len(train) < 3 * len(bound.start) or not len(test):
        return np.zeros(0), np.zeros(0, int)
    fitted = fit_family(bound, train, seed)
    return np.log(fitted.predict(bound, test) / bound.seconds[test]), test


PARTS = 10


def each_left_out(bound: Bound, seed: int = 0) -> tuple[Array, Rows]:
    """As ``left_out``, but every row once, a random tenth of them at a time; empty if too few rows remain."""
    n = len(bound.seconds)
    part = np.random.default_rng([seed, n]).permutation(n) % PARTS
    if n - n // PARTS < 3 * len(bound.start):
        return np.zeros(0), np.zeros(0, int)
    error = np.zeros(n)
    for k in range(PARTS):
        test = np.nonzero(part == k)[0]
        if len(test):
            fitted = fit_family(bound, np.nonzero(part != k)[0], seed)
            error[test] = np.log(fitted.predict(bound, test) / bound.seconds[test])
    return error, np.arange(n)
