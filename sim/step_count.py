"""How many decode steps of a closed-form stretch fit into a span of time, and into free KV blocks."""

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


def steps_that_fit(free: int, grow: list[int], at: int) -> tuple[int, int]:
    """(most steps, blocks they take) when step ``i`` takes ``grow[(at + i) mod len(grow)]`` of ``free`` blocks; some step takes one."""
    block = len(grow)
    cycles, left = divmod(free, sum(grow))
    steps = cycles * block
    while (taken := grow[(at + steps) % block]) <= left:
        left -= taken
        steps += 1
    return steps, free - left
