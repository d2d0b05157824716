"""A case's layout as the cost model's nouns, and the few loops over layouts that published "best of" numbers need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..costmodels.memory import MemoryBreakdown, train_memory
from ..costmodels.system import System, make_system
from ..costmodels.training import StepCost, train_step
from ..scenarios import registry
from ..scenarios.model import ModelSpec
from ..scenarios.reference import Layout
from ..scenarios.workload import TrainWorkload

MAX_SEQ_LOG2 = 27
"""No search looks beyond 2^27 = 134 M tokens."""


def model_of(layout: Layout) -> ModelSpec:
    """The layout's model with its changes applied."""
    changes: dict[str, Any] = dict(layout.change)
    return dataclasses.replace(registry.model(layout.model), **changes)


def system_of(layout: Layout) -> System:
    """The layout's cluster under its plan's framework."""
    cluster = registry.cluster(layout.gpu, layout.n_gpus, layout.gpus_per_node or None)
    return make_system(cluster, layout.plan.framework)


def step(layout: Layout) -> StepCost:
    """The layout's step, priced."""
    return train_step(model_of(layout), layout.plan, layout.work, system_of(layout))


def memory(layout: Layout) -> MemoryBreakdown:
    """The layout's peak memory."""
    return train_memory(model_of(layout), layout.plan, layout.work, system_of(layout))


def scalar(value: Any) -> float:
    """A number from a number or an array of one."""
    return float(np.asarray(value).reshape(-1)[0])


def longest_fit(layout: Layout, *, power_of_two: bool = False, token_limit: float = float("inf")) -> float:
    """Most tokens per sequence that fit in device and host memory: bisection on the sequence, or the largest power of two. 0: none fits.

    ``token_limit`` is a limit that is not memory (a kernel's index width).
    """
    model, system = model_of(layout), system_of(layout)

    def fits(seq: np.ndarray) -> np.ndarray:
        work = TrainWorkload(seq_tokens=seq, global_batch=layout.work.global_batch)
        return np.broadcast_to(train_memory(model, layout.plan, work, system).fits, seq.shape) & (seq <= token_limit)

    coarse = 2 ** np.arange(8, MAX_SEQ_LOG2 + 1, dtype=np.int64)
    good = coarse[fits(coarse)]
    if not len(good):
        return 0.0
    low, high = int(good.max()), 2 * int(good.max())
    while not power_of_two and high - low > low // 2048:
        grid = np.unique(np.linspace(low, high, 33).astype(np.int64))
        last = int(np.flatnonzero(fits(grid)).max())
        low, high = int(grid[last]), int(grid[min(last + 1, len(grid) - 1)])
    return float(low)


def degrees(layout: Layout, axis: str, micro_batches: tuple[int, ...] = (1, 2, 4, 8)) -> Iterator[Layout]:
    """Every power-of-two degree of one axis (``tp`` or ``cp``) with the data ranks filling the rest, at each micro-batch."""
    n = 1
    while n <= layout.n_gpus:
        for micro in micro_batches:
            rest = layout.n_gpus // n
            numbers: dict[str, Any] = {axis: n, "dp": rest, "micro_batch": micro}
            plan = dataclasses.replace(layout.plan, **numbers)
            work = TrainWorkload(seq_tokens=layout.work.seq_tokens, global_batch=rest * micro * scalar_int(layout.plan.grad_accum))
            yield dataclasses.replace(layout, plan=plan, work=work)
        n *= 2


def scalar_int(value: Any) -> int:
    """A whole number from a number or an array of one."""
    return int(scalar(value))


def best_tokens_per_s(layout: Layout, axis: str) -> float:
    """Tokens per second of the fastest layout over one axis's degrees that fits; 0 when none fits."""
    best = 0.0
    for choice in degrees(layout, axis):
        if bool(np.all(memory(choice).fits)) and _legal(choice, axis):
            tokens = scalar(choice.work.seq_tokens) * scalar(choice.work.global_batch)
            best = max(best, tokens / scalar(step(choice).step_time_s))
    return best


def longest_of(layout: Layout, axis: str) -> float:
    """Largest power-of-two sequence that fits at any degree of the axis with micro-batch 1."""
    return max((longest_fit(choice, power_of_two=True) for choice in degrees(layout, axis, (1,)) if _legal(choice, axis)), default=0.0)


def _legal(layout: Layout, axis: str) -> bool:
    """Heads bound both axes here: tensor parallelism and Ulysses split them."""
    degree = scalar_int(getattr(layout.plan, axis))
    return model_of(layout).n_heads % degree == 0 or degree == 1
