"""The longest sequence each layout can train on: bisection on all rows of a batch at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .legal import chunks_per_rank
from .prune import Prices, rows_of, uses
from .space import Batch

GRANULE_TOKENS = 1024
MAX_TOKENS = 1 << 36
"""Where the search stops: a layout that fits 64 Gi tokens is not limited by memory."""


def longest(batches: Iterable[Batch], prices: Prices) -> Iterator[Batch]:
    """The same layouts, each at the longest sequence that keeps every limit; layouts that fit none are dropped.

    ``seq = k * step`` with ``step = lcm(1024, cp * chunks, cp * tp)`` and the largest ``k`` that fits, found by doubling and bisection.
    """
    for batch in batches:
        step = legal_step(batch)
        units = _most_units(batch, prices, step)
        keep = units > 0
        if not keep.any():
            continue
        plan = rows_of(batch.plan, keep)
        work = replace(rows_of(batch.work, keep), seq_tokens=(units * step)[keep])
        yield Batch(plan=plan, work=work, n=int(keep.sum()))


def legal_step(batch: Batch) -> NDArray[np.int64]:
    """The smallest step between legal sequence lengths of each row, at least 1,024 tokens."""
    plan = batch.plan
    chunk = np.lcm(np.multiply(plan.cp, chunks_per_rank(plan.cp_kind)), np.multiply(plan.cp, plan.tp))
    return np.broadcast_to(np.lcm(chunk, GRANULE_TOKENS), batch.n).astype(np.int64)


def _most_units(batch: Batch, prices: Prices, step: NDArray[np.int64]) -> NDArray[np.int64]:
    """Largest k per row such that ``k * step`` tokens fit (0: not even one step)."""
    most = np.maximum(MAX_TOKENS // step, 1)
    low, high = np.zeros(batch.n, np.int64), np.ones(batch.n, np.int64)
    growing = np.arange(batch.n)
    while growing.size:  # double until it no longer fits
        ok = _fits(batch, prices, high[growing] * step[growing], growing)
        low[growing[ok]] = high[growing[ok]]
        growing = growing[ok & (high[growing] < most[growing])]
        high[growing] = np.minimum(2 * high[growing], most[growing])
    open_rows = np.flatnonzero(high - low > 1)
    while open_rows.size:
        middle = (low[open_rows] + high[open_rows]) // 2
        ok = _fits(batch, prices, middle * step[open_rows], open_rows)
        low[open_rows[ok]], high[open_rows[~ok]] = middle[ok], middle[~ok]
        open_rows = open_rows[high[open_rows] - low[open_rows] > 1]
    return low


def _fits(batch: Batch, prices: Prices, seq: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    plan = rows_of(batch.plan, rows)
    work = replace(rows_of(batch.work, rows), seq_tokens=seq)
    need = uses(plan, work, prices, rows.size)
    return np.asarray(np.logical_and.reduce([use <= 1.0 for use in need.values()]))
