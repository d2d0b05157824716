"""Every legal layout of a training step, as batches of arrays: one ParallelPlan per combination of its text fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.plan import CpKind, Optimizer, ParallelPlan, Recompute, Schedule, Sharding
from ..scenarios.workload import TrainWorkload
from .engines import Engine
from .legal import OPTION_RULES, SHAPE_RULES, Columns, Facts, Mask, Rule, outer_layers

MAX_MICRO_BATCH = 64
"""Larger micro-batches only cost memory: every matmul is long past its ridge."""
MAX_ROWS = 1 << 15
"""Rows of one batch: small enough for the temporaries of a price to stay in cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the space is built for. ``seq_tokens = 0``: the sequence is free; ``global_batch = 0``: one sequence per data rank."""

    model: ModelSpec
    cluster: Cluster
    engines: tuple[Engine, ...]
    seq_tokens: int
    global_batch: int
    micro_batch: int = 0
    precisions: tuple[str, ...] = ("bf16",)
    optimizer: Optimizer = "adamw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``n`` candidates that share their text fields; a numeric field of ``plan`` is an array of length ``n``, or one number for all."""

    plan: ParallelPlan
    work: TrainWorkload
    n: int


@dataclass(slots=True)
class Rejections:
    """Layouts turned away, by the rule they broke: how many, and one example as a sentence."""

    count: dict[str, int] = field(default_factory=dict)
    example: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, n: int, example: str) -> None:
        """Count ``n`` more layouts under ``reason``; the first example stays."""
        self.count[reason] = self.count.get(reason, 0) + n
        self.example.setdefault(reason, example)

    def rows(self) -> list[dict[str, object]]:
        """``[{"reason", "count", "example"}]``, most frequent first."""
        order = sorted(self.count, key=lambda reason: (-self.count[reason], reason))
        return [{"reason": reason, "count": self.count[reason], "example": self.example[reason]} for reason in order]


@cache
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of n, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))


@cache
def shapes(n_gpus: int) -> NDArray[np.int64]:
    """Every ``(tp, pp, cp, dp)`` of positive integers whose product is ``n_gpus``: shape [count, 4]."""
    rows = [
        (tp, pp, cp, n_gpus // tp // pp // cp)
        for tp in divisors(n_gpus)
        for pp in divisors(n_gpus // tp)
        for cp in divisors(n_gpus // tp // pp)
    ]
    return np.array(rows, dtype=np.int64)


def candidates(asked: Asked, rejections: Rejections, *, lifted: frozenset[str] = frozenset()) -> Iterator[Batch]:
    """All legal layouts of ``asked``; what is turned away is counted in ``rejections``.

    With ``lifted``, instead, the layouts that only break shape rules of these names: what lifting them would add.
    """
    shape_rules = [r for r in SHAPE_RULES if r.name not in lifted]
    for engine in asked.engines:
        for facts in _kinds(asked, engine):
            columns = _shapes_of(facts)
            columns = _keep_legal(shape_rules, facts, columns, rejections)
            if lifted and columns["tp"].size:
                broken = [~rule.holds(facts, columns) for rule in SHAPE_RULES if rule.name in lifted]
                columns = take(columns, np.logical_or.reduce(broken))
            if columns["tp"].size == 0:
                continue
            for sharding, stages in engine.sharding:
                options = _with_options(asked, facts, sharding, stages, columns)
                options = _keep_legal(OPTION_RULES, facts, options, rejections)
                yield from _batches(asked, facts, sharding, options)


def _kinds(asked: Asked, engine: Engine) -> Iterator[Facts]:
    """The text fields that decide which shapes are legal: context-parallel kind and pipeline schedule (1F1B also without a pipeline)."""
    kinds: tuple[CpKind, ...] = ("none", *engine.cp_kinds)
    schedules: tuple[Schedule, ...] = tuple(dict.fromkeys(("1f1b", *engine.schedules)))
    for kind, schedule in product(kinds, schedules):
        yield Facts(
            model=asked.model, cluster=asked.cluster, engine=engine, seq_tokens=asked.seq_tokens, global_batch=asked.global_batch,
            cp_kind=kind, schedule=schedule,
        )  # fmt: skip


def _shapes_of(facts: Facts) -> Columns:
    """Shapes of this kind: cp > 1 exactly when there is a context-parallel kind, pp > 1 where the framework has the schedule."""
    tp, pp, cp, dp = shapes(facts.cluster.n_gpus).T
    piped = (pp > 1) & (facts.schedule in facts.engine.schedules)
    wanted = ((cp > 1) == (facts.cp_kind != "none")) & (piped | ((pp == 1) & (facts.schedule == "1f1b"))) & ((tp == 1) | _has_tp(facts))
    columns = {"tp": tp[wanted], "pp": pp[wanted], "cp": cp[wanted], "dp": dp[wanted]}
    inner = columns["cp"] if facts.cp_kind == "ulysses" else np.ones_like(columns["cp"])
    columns["cp_inner"] = inner
    if facts.cp_kind != "ulysses-ring":
        return columns
    columns = cross(columns, cp_inner=divisors(facts.cluster.n_gpus))
    inner, cp = columns["cp_inner"], columns["cp"]
    return take(columns, (inner > 1) & (inner < cp) & (cp % inner == 0))


def _has_tp(facts: Facts) -> bool:
    return facts.engine.tp and not (facts.engine.dense_tp_only and facts.model.n_experts)


def _with_options(asked: Asked, facts: Facts, sharding: Sharding, stages: tuple[int, ...], columns: Columns) -> Columns:
    """Cross the shapes with virtual stages, experts, micro-batches, ZeRO stages and memory switches."""
    model, engine = asked.model, facts.engine
    vpp = [v for v in divisors(model.n_layers) if v > 1] if facts.schedule == "interleaved" else [1]
    ep = divisors(model.n_experts) if model.n_experts and engine.ep else (1,)
    columns = cross(columns, vpp=vpp)
    columns = take(columns, (columns["vpp"] == 1) | (model.n_layers % (columns["pp"] * columns["vpp"]) == 0))
    columns = cross(columns, ep=ep, expert_cut=(0, 1) if len(ep) > 1 else (0,), zero_stage=stages)
    columns = _with_expert_tp(columns)
    columns = _with_groups(facts, sharding, columns)
    columns = _with_micro_batches(asked, columns)
    uneven = model.n_layers % columns["pp"] != 0
    first, last = outer_layers(model.n_layers, columns["pp"])
    return columns | {"layers_first": np.where(uneven, first, 0), "layers_last": np.where(uneven, last, 0)}


def _with_expert_tp(columns: Columns) -> Columns:
    """Experts are whole or cut like everything else: ``expert_tp`` is 1 or tp."""
    cut = columns.pop("expert_cut")
    columns = columns | {"expert_tp": np.where(cut == 1, columns["tp"], 1)}
    return take(columns, (cut == 0) | (columns["tp"] > 1))


def _with_groups(facts: Facts, sharding: Sharding, columns: Columns) -> Columns:
    """HSDP shards inside a node and replicates between nodes: the group is the data ranks of one node, if that is a real split."""
    if sharding != "hsdp":
        return columns | {"hsdp_group": np.zeros_like(columns["dp"])}
    ranks = columns["dp"] * columns["cp"]
    group = facts.cluster.gpus_per_node // columns["tp"]
    whole = (ranks % np.maximum(group, 1) == 0) & (group % columns["cp"] == 0)
    return take(columns | {"hsdp_group": group}, (group > 1) & (group < ranks) & whole)


def _with_micro_batches(asked: Asked, columns: Columns) -> Columns:
    """``micro_batch * grad_accum * dp = global_batch``; with a free batch every data rank runs one sequence."""
    if not asked.global_batch:
        ones = np.ones_like(columns["dp"])
        return columns | {"micro_batch": ones * max(asked.micro_batch, 1), "grad_accum": ones}
    sizes = (asked.micro_batch,) if asked.micro_batch else [d for d in divisors(asked.global_batch) if d <= MAX_MICRO_BATCH]
    columns = cross(columns, micro_batch=sizes)
    local = asked.global_batch // columns["dp"]
    columns = take(columns | {"grad_accum": local // columns["micro_batch"]}, local % columns["micro_batch"] == 0)
    return columns


def _batches(asked: Asked, facts: Facts, sharding: Sharding, columns: Columns) -> Iterator[Batch]:
    """Cross with recompute and the memory switches that make sense beside it; cut into batches of at most MAX_ROWS rows."""
    engine = facts.engine
    dense = asked.model.n_moe_layers < asked.model.n_layers
    for recompute, precision in product(engine.recompute, asked.precisions):
        if precision not in engine.precisions:
            continue
        rows = cross(
            columns, offload_optimizer=engine.offload_optimizer, offload_params=engine.offload_params,
            offload_activations=engine.offload_activations if recompute in ("full", "remat") else (0,),
            tiled_mlp=engine.tiled_mlp if dense else (0,), fused_loss=engine.fused_loss,
        )  # fmt: skip
        rows = take(rows, ((rows["offload_params"] == 0) | (rows["zero_stage"] == 3)))
        rows = take(rows, ((rows["offload_optimizer"] == 0) | (rows["zero_stage"] > 0)))
        if engine.offload_together:
            rows = take(rows, rows["offload_optimizer"] == rows["offload_params"])
        size = rows["tp"].size
        for start in range(0, size, MAX_ROWS):
            part = {key: column[start : start + MAX_ROWS] for key, column in rows.items()}
            yield _batch(asked, facts, sharding, recompute, precision, part)


def _batch(asked: Asked, facts: Facts, sharding: Sharding, recompute: Recompute, precision: str, columns: Columns) -> Batch:
    fields: dict[str, Any] = {name: _folded(column) for name, column in columns.items()}
    plan = ParallelPlan(
        **fields, cp_kind=facts.cp_kind, schedule=facts.schedule, recompute=recompute, sharding=sharding, precision=precision,
        optimizer=asked.optimizer, framework=facts.engine.name,
    )  # fmt: skip
    batch = columns["dp"] * columns["micro_batch"] * columns["grad_accum"]
    work = TrainWorkload(seq_tokens=asked.seq_tokens or np.ones_like(batch), global_batch=batch)
    return Batch(plan=plan, work=work, n=batch.size)


def _folded(column: NDArray[np.int64]) -> int | NDArray[np.int32]:
    """A constant column as one number, any other in half the memory: large spaces have a million rows of 25 columns."""
    return int(column[0]) if np.all(column == column[0]) else column.astype(np.int32)


def _keep_legal(rules: list[Rule], facts: Facts, columns: Columns, rejections: Rejections) -> Columns:
    """Rows that obey every rule; the others are counted under the first rule they break."""
    for rule in rules:
        if columns["tp"].size == 0:
            break
        ok = rule.holds(facts, columns)
        if not ok.all():
            row = int(np.argmin(ok))
            rejections.add(rule.name, int((~ok).sum()), rule.sentence(facts, columns, row))
            columns = take(columns, ok)
    return columns


def cross(columns: Columns, **axes: tuple[int, ...] | list[int]) -> Columns:
    """The Cartesian product of the rows with each axis: every old row repeated for every combination of the new values."""
    for name, values in axes.items():
        n, k = next(iter(columns.values())).size, len(values)
        columns = {key: np.repeat(column, k) for key, column in columns.items() if key != name}
        columns[name] = np.tile(np.asarray(values, np.int64), n)
    return columns


def take(columns: Columns, mask: Mask) -> Columns:
    """The rows where the mask is true."""
    if mask.all():
        return columns
    return {key: column[mask] for key, column in columns.items()}
