"""Candidates that cut a layer alike share its price: finds the distinct ones in a batch, so each is priced once."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..scenarios.plan import ParallelPlan
from .op import Floats
from .shard import Shard

T = TypeVar("T", ParallelPlan, Shard)

PLAN_SIZES = ("tp", "cp", "cp_inner", "ep", "expert_tp", "sequence_parallel")
"""All numeric fields of a plan that the ops of a layer read; the rest of what they read is in the shard."""
STAGE_SIZES = ("layers", "layers_first", "layers_last")
"""Fields of a shard that say how many layers there are, not what one is."""
PLAN_WORDS = ("cp_kind", "schedule", "precision", "attention", "lora_rank")
"""All other fields of a plan that the price of a layer without recomputation depends on."""
WORTH_IT = 512
"""Shortest batch in which finding the distinct rows costs less than it saves."""

Memo = dict[tuple[object, ...], dict[str, Floats]]
"""Layers priced before, by ``key``; valid for one model on one system."""


def distinct(plan: ParallelPlan, cut: Shard, at_least: int | None = None) -> tuple[ParallelPlan, Shard, NDArray[np.int64] | None]:
    """(plan, cut, back): one row per distinct layer, and the row of each candidate: ``price(plan, cut)[back]``.

    ``back`` is None where the batch has fewer than ``at_least`` rows, and plan and cut are then the given ones.
    """
    columns = _columns(plan, cut)
    n = max((c.size for c in columns if c.ndim == 1), default=0)
    if n < (WORTH_IT if at_least is None else at_least) or any(c.ndim > 1 for c in columns):
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


def key(plan: ParallelPlan, cut: Shard) -> tuple[object, ...]:
    """What the price of these layers depends on, as a dictionary key."""
    return (*(getattr(plan, word) for word in PLAN_WORDS), *((c.shape, c.tobytes()) for c in _columns(plan, cut)))


def _columns(plan: ParallelPlan, cut: Shard) -> list[NDArray[np.float64]]:
    sizes = [np.asarray(getattr(cut, f.name), float) for f in fields(cut) if f.name not in STAGE_SIZES]
    return [np.asarray(getattr(plan, name), float) for name in PLAN_SIZES] + sizes


def _rows(item: T, rows: NDArray[np.int64]) -> T:
    taken: dict[str, Any] = {f.name: getattr(item, f.name) for f in fields(item)}
    taken = {name: value[rows] for name, value in taken.items() if isinstance(value, np.ndarray) and value.ndim == 1 and value.size > 1}
    return replace(item, **taken)
