"""Prices published training runs in batches: rows that share model, cluster and text options become one array."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..costmodels.memory import MemoryBreakdown, train_memory
from ..costmodels.system import make_system
from ..costmodels.training import StepCost, train_step
from ..scenarios.errors import RoofplanError
from ..scenarios.plan import ParallelPlan
from ..scenarios.workload import TrainWorkload
from .training_plan import Setting, setting_of
from .training_published import feasibility
from .training_rows import TrainingRun

NUMBERS = tuple(
    f.name for f in dataclasses.fields(ParallelPlan) if isinstance(f.default, int) and f.name not in ("lora_rank", "expandable_segments")
)
"""Fields of a plan that may be arrays."""
Watch = Callable[[Sequence[list[Setting]]], Iterable[list[Setting]]]
"""Passes batches of runs on, and may show that it does."""
TUNED_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
TUNED_VPP = (1, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One run beside its prediction. ``peak_bytes`` counts what the source counts; ``fits`` is our verdict on device and host memory."""

    setting: Setting
    step_s: float
    peak_bytes: float
    fits: bool
    ran: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A run that was not priced, and why."""

    id: str
    why: str


def price_runs(runs: Iterable[TrainingRun], watch: Watch = list) -> tuple[list[Priced], list[Skipped]]:
    """Price every run that can be; the order is the file's. A batch that fails is priced row by row to name the row at fault."""
    priced: dict[str, Priced] = {}
    skipped: list[Skipped] = []
    groups: dict[tuple[object, ...], list[Setting]] = defaultdict(list)
    order = []
    for run in runs:
        order.append(run.id)
        try:
            setting = setting_of(run)
        except RoofplanError as error:
            skipped.append(Skipped(id=run.id, why=str(error)))
            continue
        groups[group_key(setting)].append(setting)
    for group in watch(list(groups.values())):
        for row in _price_group(group):
            if isinstance(row, Skipped):
                skipped.append(row)
            else:
                priced[row.setting.run.id] = row
    place = {name: i for i, name in enumerate(order)}
    return sorted(priced.values(), key=lambda p: place[p.setting.run.id]), sorted(skipped, key=lambda s: place[s.id])


def group_key(s: Setting) -> tuple[object, ...]:
    """What runs must share to be priced as one array: model, cluster and every text option."""
    text = tuple(getattr(s.plan, f.name) for f in dataclasses.fields(s.plan) if f.name not in NUMBERS)
    cluster = dataclasses.replace(s.cluster, n_gpus=1, sources={})
    return (s.model, cluster.name, cluster.gpus_per_node, text, s.run.id if s.tuned else "")


def _price_group(group: list[Setting]) -> list[Priced | Skipped]:
    try:
        return _price_tuned(group[0]) if group[0].tuned else _price_batch(group)
    except RoofplanError as error:
        if len(group) == 1:
            return [Skipped(id=group[0].run.id, why=str(error))]
        return [row for setting in group for row in _price_group([setting])]


def _price_batch(group: list[Setting]) -> list[Priced | Skipped]:
    plan = batch_of([s.plan for s in group])
    work = TrainWorkload(
        seq_tokens=np.array([s.work.seq_tokens for s in group], np.int64),
        global_batch=np.array([s.work.global_batch for s in group], np.int64),
    )
    step, memory = price(group[0], plan, work, max(s.cluster.n_gpus for s in group))
    seconds, fits = _each(step.step_time_s, len(group)), _each(memory.fits, len(group))
    peak = _each(measured_bytes(memory, group[0].rule.measures), len(group))
    return [_one(s, float(seconds[i]), float(peak[i]), bool(fits[i])) for i, s in enumerate(group)]


def _one(s: Setting, step_s: float, peak_bytes: float, fits: bool) -> Priced | Skipped:
    if not (0 < step_s < float("inf") and 0 < peak_bytes < float("inf")):
        return Skipped(id=s.run.id, why=f"sizes out of range: priced at {step_s:g} s and {peak_bytes:g} bytes")
    return Priced(setting=s, step_s=step_s, peak_bytes=peak_bytes, fits=fits, ran=feasibility(s.run, s.rule))


def _price_tuned(s: Setting) -> list[Priced | Skipped]:
    """Micro-batch and interleaving unknown: the fastest that fits among powers of two and divisors (micro-batch 1 if none fits)."""
    stage = s.model.n_layers // int(s.plan.pp)
    per_rank = s.work.global_batch // int(s.plan.dp)
    choices = [
        (micro, vpp)
        for micro in TUNED_MICRO_BATCHES
        for vpp in TUNED_VPP
        if per_rank % micro == 0 and (vpp == 1 or (int(s.plan.pp) > 1 and stage % vpp == 0 and per_rank // micro % int(s.plan.pp) == 0))
    ]
    best: Priced | None = None
    for schedule in ("1f1b", "interleaved"):
        picks = [c for c in choices if (c[1] > 1) == (schedule == "interleaved")]
        if not picks:
            continue
        plans = [dataclasses.replace(s.plan, micro_batch=m, vpp=v, grad_accum=per_rank // m, schedule=schedule) for m, v in picks]
        for row in _price_batch([dataclasses.replace(s, plan=p) for p in plans]):
            if isinstance(row, Priced) and (best is None or (row.fits, -row.step_s) > (best.fits, -best.step_s)):
                best = row
    return [best] if best else _price_batch([s])


def batch_of(plans: list[ParallelPlan]) -> ParallelPlan:
    """Many plans with equal text fields as one plan of arrays."""
    columns: dict[str, Any] = {name: np.array([getattr(p, name) for p in plans], np.int64) for name in NUMBERS}
    return dataclasses.replace(plans[0], **columns)


def price(s: Setting, plan: ParallelPlan, work: TrainWorkload, n_gpus: int) -> tuple[StepCost, MemoryBreakdown]:
    """Step and memory of a batch on this setting's cluster."""
    system = make_system(dataclasses.replace(s.cluster, n_gpus=n_gpus), s.rule.framework)
    return train_step(s.model, plan, work, system), train_memory(s.model, plan, work, system)


def measured_bytes(memory: MemoryBreakdown, measures: str) -> np.ndarray:
    """Our peak as the source counts it: the whole device, blocks reserved by the allocator, or tensors allocated."""
    total = np.asarray(memory.total_bytes, float)
    if measures == "device":
        return total
    reserved = total - memory.context_bytes
    return reserved if measures == "reserved" else reserved - memory.fragmentation_bytes


def _each(values: object, n: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(values), (n,))
