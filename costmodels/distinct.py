"""Candidates that cut a layer alike share its price: finds the distinct ones in a batch, so each is priced once."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..scenarios.plan import ParallelPlan
from .shard import Shard

T = TypeVar("T", ParallelPlan, Shard)

PLAN_SIZES = ("tp", "cp", "cp_inner", "ep", "expert_tp", "sequence_parallel")
"""All numeric fields of a plan that the ops of a layer read; the rest of what they read is in the shard."""
STAGE_SIZES = ("layers", "layers_first", "layers_last")
"""Fields of a shard that say how many layers there are, not what one is."""
WORTH_IT = 512


def distinct(plan: ParallelPlan, cut: Shard) -> tuple[ParallelPlan, Shard, NDArray[np.int64] | None]:
    """(plan, cut, back): one row per distinct layer, and the row of each candidate: ``price(plan, cut)[back]``.

    ``back`` is None where the batch is too short to gain, and plan and cut are then the given ones.
    """
    layer_sizes = [f.name for f in fields(cut) if f.name not in STAGE_SIZES]
    columns = [np.asarray(getattr(plan, n), float) for n in PLAN_SIZES] + [np.asarray(getattr(cut, n), float) for n in layer_sizes]
    n = max((c.size for c in columns if c.ndim == 1), default=0)
    if n < WORTH_IT or any(c.ndim > 1 for c in columns):
        return plan, cut, None
    varying = [c for c in columns if c.ndim == 1 and c.size == n]
    order = np.lexsort(varying)
    change = np.zeros(n, bool)
    for c in varying:
        change[1:] |= c[order[1:]] != c[order[:-1]]
    back = np.empty(n, np.int64)
    back[order] = np.cumsum(change)
    first = order[np.flatnonzero(np.concatenate(([True], change[1:])))]
    return _rows(plan, first), _rows(cut, first), back


def _rows(item: T, rows: NDArray[np.int64]) -> T:
    taken: dict[str, Any] = {f.name: getattr(item, f.name) for f in fields(item)}
    taken = {name: value[rows] for name, value in taken.items() if isinstance(value, np.ndarray) and value.ndim == 1 and value.size > 1}
    return replace(item, **taken)
