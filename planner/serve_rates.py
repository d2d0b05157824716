"""The grid of rates that plans are tried at, and the search for the highest that is carried."""

from __future__ import annotations

import math
from collections.abc import Callable

RATE_STEP = 1.01
"""Rates are tried on a grid of powers of this, the levels, so that equal questions find equal rates."""


def level(rate_per_s: float) -> int:
    """The highest level not above this rate."""
    return math.floor(math.log(rate_per_s) / math.log(RATE_STEP) + 1e-9)


def level_from(rate_per_s: float) -> int:
    """The lowest level not below this rate."""
    return math.ceil(math.log(rate_per_s) / math.log(RATE_STEP) - 1e-9)


def rate(at: int) -> float:
    """Requests per second of a level."""
    return RATE_STEP**at


def highest(failed: Callable[[int], object], first: int, above: int, below: int, jump: int = 1) -> int:
    """The highest level between ``above`` and ``below`` (both left out) that has not ``failed``; ``above`` if none was carried.

    Steps away from ``first`` start at ``jump`` and double until one level is carried and one is not; then bisection.
    """
    low, high, at = above, below, first
    while high - low > 1:
        if failed(at):
            high = at
        else:
            low = at
        if low > above and high < below:
            at = (low + high) // 2
        else:
            at = min(low + jump, below - 1) if low > above else max(high - jump, above + 1)
            jump *= 2
    return low
