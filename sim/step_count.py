"""How many decode steps of a closed-form stretch fit into a span of time."""

from __future__ import annotations

import math


def steps_before(span: int, first: int, growth: int) -> int:
    """Most steps whose total ``j·first + growth·j(j+1)/2`` stays under ``span`` (all in ps, ``first > 0``)."""
    half = growth / 2
    linear = first + half
    j = int(2 * span / (linear + math.sqrt(linear * linear + 4 * half * span)))
    while j > 0 and j * first + growth * (j * (j + 1) >> 1) >= span:
        j -= 1
    while (j + 1) * first + growth * ((j + 1) * (j + 2) >> 1) < span:
        j += 1
    return j
