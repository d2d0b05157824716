"""Prices whole batches of layouts and says which limits each one breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.memory import MemoryBreakdown
from ..costmodels.training import StepCost
from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from ..scenarios.workload import TrainWorkload
from .space import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The cost model as the planner sees it: functions of a (batched) plan and workload, and the limits' constants.

    ``stage_bytes(plan, work, role)`` is the device memory of a rank of the ``"first"`` or ``"last"`` stage.
    """

    model: ModelSpec
    step: Callable[[ParallelPlan, TrainWorkload], StepCost]
    memory: Callable[[ParallelPlan, TrainWorkload], MemoryBreakdown]
    stage_bytes: Callable[[ParallelPlan, TrainWorkload, str], Any]
    index_bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All priced candidates as columns; candidate i is row ``row[i]`` of ``batches[batch[i]]``.

    ``use[limit]`` is need over limit: over 1 is broken. ``bound_s`` is the step time if the pipeline's stages were perfectly even:
    no partition of the layers can beat it.
    """

    batches: list[Batch]
    batch: NDArray[np.int32]
    row: NDArray[np.int32]
    step_time_s: Floats
    bound_s: Floats
    seq_tokens: Floats
    tokens: Floats
    use: dict[str, Floats]
    wall_s: float

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Rows within every limit."""
        return np.asarray(np.logical_and.reduce([use <= 1.0 for use in self.use.values()]))

    def breaks_only(self, limit: str) -> NDArray[np.bool_]:
        """Rows that would fit if this one limit were lifted."""
        others = [use <= 1.0 for name, use in self.use.items() if name != limit]
        return np.asarray((self.use[limit] > 1.0) & np.logical_and.reduce(others))

    def pick(self, index: int) -> tuple[ParallelPlan, TrainWorkload]:
        """One candidate with plain integers."""
        return pick(self.batches[int(self.batch[index])], int(self.row[index]))


def hbm(memory: MemoryBreakdown, plan: ParallelPlan, work: TrainWorkload, prices: Prices) -> Any:
    """``total_bytes / limit_bytes``: the fullest rank against its device memory."""
    return memory.total_bytes / memory.limit_bytes


def host_ram(memory: MemoryBreakdown, plan: ParallelPlan, work: TrainWorkload, prices: Prices) -> Any:
    """``host_bytes / host_limit_bytes``: a host's offloaded bytes against its RAM."""
    return memory.host_bytes / memory.host_limit_bytes


def kernel_index(memory: MemoryBreakdown, plan: ParallelPlan, work: TrainWorkload, prices: Prices) -> Any:
    """``micro_batch * seq / cp * hidden / 2^bits``: elements of a hidden-state tensor against what a kernel's index can count.

    Source: ALST recipes (the one-GPU 500K recipe notes an illegal access at 555K, where the product passes 2^31).
    """
    if not prices.index_bits:
        return np.zeros_like(memory.total_bytes)
    return plan.micro_batch * work.seq_tokens / plan.cp * prices.model.hidden / 2.0**prices.index_bits


LIMITS: dict[str, Callable[[MemoryBreakdown, ParallelPlan, TrainWorkload, Prices], Any]] = {
    "hbm": hbm,
    "host_ram": host_ram,
    "kernel_index": kernel_index,
}
"""Every limit by name: a function to need over limit."""


def price(batches: Iterable[Batch], prices: Prices) -> Table:
    """Memory, limits and step time of every candidate; nothing is dropped, so what each limit costs can be told afterwards."""
    started = time.perf_counter()
    kept: list[Batch] = []
    columns: dict[str, list[Floats]] = {name: [] for name in ("batch", "row", "time", "bound", "seq", "tokens", *LIMITS)}
    for batch in batches:
        use = uses(batch.plan, batch.work, prices, batch.n)
        step = prices.step(batch.plan, batch.work)
        columns["batch"].append(np.full(batch.n, float(len(kept))))
        columns["row"].append(np.arange(batch.n, dtype=float))
        columns["time"].append(np.broadcast_to(step.step_time_s, batch.n))
        columns["bound"].append(np.broadcast_to(even_stages_s(batch.plan, step), batch.n))
        columns["seq"].append(np.broadcast_to(np.asarray(batch.work.seq_tokens, float), batch.n))
        columns["tokens"].append(columns["seq"][-1] * batch.work.global_batch)
        for name, column in use.items():
            columns[name].append(column)
        kept.append(batch)
    joined = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
    return Table(
        batches=kept, batch=joined["batch"].astype(np.int32), row=joined["row"].astype(np.int32), step_time_s=joined["time"],
        bound_s=joined["bound"], seq_tokens=joined["seq"], tokens=joined["tokens"], use={name: joined[name] for name in LIMITS},
        wall_s=time.perf_counter() - started,
    )  # fmt: skip


def even_stages_s(plan: ParallelPlan, step: StepCost) -> Any:
    """``step - m (T - mean)`` with the mean stage time ``mean = bubble v / (p - 1)`` of 1F1B and GPipe; else the step time."""
    if plan.schedule not in ("1f1b", "gpipe"):
        return step.step_time_s
    period = step.micro_fwd_s + step.micro_bwd_s + step.micro_wgrad_s
    mean = step.bubble_s * plan.vpp / np.maximum(np.subtract(plan.pp, 1), 1)
    return step.step_time_s - np.where(np.greater(plan.pp, 1), plan.grad_accum * np.maximum(period - mean, 0.0), 0.0)


def uses(plan: ParallelPlan, work: TrainWorkload, prices: Prices, n: int) -> dict[str, Floats]:
    """Need over limit of every limit, each an array of ``n``."""
    memory = prices.memory(plan, work)
    return {name: np.broadcast_to(np.asarray(use(memory, plan, work, prices), float), n) for name, use in LIMITS.items()}


def pick(batch: Batch, row: int) -> tuple[ParallelPlan, TrainWorkload]:
    """Row ``row`` of a batch as a plan and workload of plain integers."""
    return rows_of(batch.plan, row), rows_of(batch.work, row)


def rows_of(item: Any, index: Any) -> Any:
    """The same dataclass with every array field indexed; an integer index gives plain integers."""
    taken = {}
    for name in _names(type(item)):
        value = getattr(item, name)
        if isinstance(value, np.ndarray) and value.ndim:
            part = value[index]
            taken[name] = part.item() if np.ndim(part) == 0 else part
    return replace(item, **taken)


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(cls: type) -> tuple[str, ...]:
    """The field names of a dataclass, looked up once per class."""
    if cls not in _NAMES:
        _NAMES[cls] = tuple(f.name for f in fields(cls))
    return _NAMES[cls]
