"""Fits the few coefficients of a trend to measured times: least squares on the log error, bounded by physics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..costmodels.arrays import Array, Rows
from .grid_fit import scipy_sparse

MAX_ROWS = 4000
"""Rows a trend is fitted on; more change nothing, the correction table sees all."""


def to_free(name: str, value: float) -> float:
    """A coefficient as an unbounded number: fractions by their odds, everything else by its logarithm."""
    return float(np.log(1 / value - 1)) if is_fraction(name) else float(np.log(value))


def from_free(name: str, free: float) -> float:
    """Inverse of ``to_free``: a fraction in (0, 1), or a positive number."""
    return float(1 / (1 + np.exp(free))) if is_fraction(name) else float(np.exp(free))


def is_fraction(name: str) -> bool:
    """Whether a coefficient is an efficiency or gain that physics bounds by one."""
    return name.endswith(("_frac", "_gain")) and name != "l2_frac"


def fit_trend(
    price: Callable[[Mapping[str, float], Rows], Array],
    seconds: Array,
    start: Mapping[str, float],
    choices: Mapping[str, tuple[float, ...]],
    seed: int,
    pull: float = 0.0,
) -> dict[str, float]:
    """The coefficients that minimise ``Σ soft-L1(ln(price/seconds)/0.1)``; ``choices`` are tried one by one and held fixed.

    ``price(coefficients, rows)`` prices the rows of an index array. ``pull`` adds one residual a coefficient, ``pull·(x − start)`` of its
    free number, so that what few rows do not tell stays where it started. Deterministic for a seed.
    """
    scipy_sparse()
    from scipy.optimize import least_squares

    rows = _sample(seconds, seed)
    measured = seconds[rows]
    names = [n for n in start if n not in choices]
    free = np.array([to_free(n, start[n]) for n in names])
    bounds = (
        np.array([-8.0 if is_fraction(n) else f - 6 for n, f in zip(names, free, strict=True)]),
        np.array([8.0 if is_fraction(n) else f + 5 for n, f in zip(names, free, strict=True)]),
    )
    best: tuple[float, dict[str, float]] | None = None
    for held in _combinations(choices):

        def misfit(x: Array, held: dict[str, float] = held) -> Array:
            log = np.log(price({**held, **{n: from_free(n, v) for n, v in zip(names, x, strict=True)}}, rows) / measured)
            return np.concatenate([log, pull * (x - free)]) if pull else log

        solved = least_squares(misfit, free, bounds=bounds, loss="soft_l1", f_scale=0.1, max_nfev=60)
        if best is None or solved.cost < best[0]:
            best = (float(solved.cost), {**held, **{n: float(f"{from_free(n, v):.5g}") for n, v in zip(names, solved.x, strict=True)}})
    assert best is not None
    return best[1]


def _sample(seconds: Array, seed: int) -> Rows:
    """At most MAX_ROWS rows, so drawn that long times, which a table has few of, weigh as much as short ones."""
    if len(seconds) <= MAX_ROWS:
        return np.arange(len(seconds))
    bins = np.floor(2 * np.log2(seconds)).astype(int)
    share = 1 / np.sqrt(np.bincount(bins - bins.min())[bins - bins.min()])
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(len(seconds), MAX_ROWS, replace=False, p=share / share.sum()))


def _combinations(choices: Mapping[str, tuple[float, ...]]) -> list[dict[str, float]]:
    out: list[dict[str, float]] = [{}]
    for name, values in choices.items():
        out = [{**c, name: v} for c in out for v in values]
    return out
