"""The coefficients of the stage program, as differences of prices, so the program and the cost model cannot drift apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..scenarios.plan import ParallelPlan
from ..scenarios.workload import TrainWorkload
from .constraints import Option, StageProblem
from .engines import ENGINES, Engine
from .prune import Prices, rows_of


def movable(plan: ParallelPlan, engine: Engine) -> Any:
    """Whether layers may move between stages: a plain pipeline under a framework that allows uneven stages."""
    return np.greater(plan.pp, 1) & np.equal(plan.vpp, 1) & (engine.uneven_pp and plan.schedule in ("1f1b", "gpipe"))


class _Probe(NamedTuple):
    """One priced variant of a candidate: seconds of the slowest stage and of the step, bytes of the outer stages and of a host."""

    period: float
    step: float
    first: float
    last: float
    host: float


def stage_problems(prices: Prices, plan: ParallelPlan, work: TrainWorkload, n: int) -> Iterator[StageProblem]:
    """One program per row, made when asked for; every coefficient is a difference of two prices.

    A program mixes layers that keep everything with one recompute policy, its checkpoints here or on the host: what one flag of a
    framework can say. Middle stages are held to the first stage's bytes, which hold more micro-batches and so bound theirs.
    """
    engine = ENGINES[plan.framework]
    probe = _prober(prices, work, n)
    mixes = plan.recompute in ("full", "remat") and engine.partial_recompute
    probes = {"base": probe(replace(plan, recompute_layers=0) if mixes else plan)}
    if mixes:
        probes["full"] = probe(replace(plan, recompute_layers=-1))
    if mixes and 1 in engine.offload_activations:
        probes["offload"] = probe(replace(plan, recompute_layers=-1, offload_activations=1))
    if 1 in engine.offload_optimizer and np.any(np.equal(plan.pp, 1)):
        probes["optimizer"] = probe(replace(plan, recompute_layers=0 if mixes else -1, offload_optimizer=1))
    n_layers = prices.model.n_layers
    big = np.maximum(n_layers - np.asarray(plan.pp) + 1, 1)
    if engine.uneven_pp and np.any(np.greater(plan.pp, 1)):
        start = replace(plan, recompute_layers=0 if mixes else -1)
        probes["first"] = probe(replace(start, layers_first=big, layers_last=np.ones_like(big)))
        probes["last"] = probe(replace(start, layers_first=np.ones_like(big), layers_last=big))
    memory = prices.memory(plan, work)
    limits = np.broadcast_to(memory.limit_bytes, n), np.broadcast_to(memory.host_limit_bytes, n)
    for i in range(n):
        one = {name: _Probe(*(column[i] for column in columns)) for name, columns in probes.items()}
        yield _problem(rows_of(plan, i), n_layers, one, float(limits[0][i]), float(limits[1][i]))


def _prober(prices: Prices, work: TrainWorkload, n: int) -> Callable[[ParallelPlan], list[list[float]]]:
    """A function that prices a batch and gives the columns of its probes."""

    def probe(plan: ParallelPlan) -> list[list[float]]:
        step = prices.step(plan, work)
        columns = (
            step.micro_fwd_s + step.micro_bwd_s + step.micro_wgrad_s, step.step_time_s, prices.stage_bytes(plan, work, "first"),
            prices.stage_bytes(plan, work, "last"), prices.memory(plan, work).host_bytes,
        )  # fmt: skip
        return [np.broadcast_to(np.asarray(value, float), n).tolist() for value in columns]

    return probe


def _problem(plan: ParallelPlan, n_layers: int, probes: dict[str, _Probe], hbm: float, host: float) -> StageProblem:
    engine, base, stages = ENGINES[plan.framework], probes["base"], int(plan.pp)
    layers = _layers(plan, n_layers)
    timing = _timing(n_layers, stages, layers, probes) if bool(movable(plan, engine)) and "first" in probes else None
    layer_s, head_s = timing or (0.0, 0.0)
    edge = dict.fromkeys(layers, base.period) if timing is None else {r: head_s if r == "last" else 0.0 for r in layers}
    total = {r: base.last if r == "last" else base.first for r in layers}
    slope = dict.fromkeys(layers, 0.0)
    if timing is not None:
        far = {r: probes["last"].last if r == "last" else probes["first"].first for r in layers}
        slope = {r: (far[r] - total[r]) / (n_layers - stages + 1 - layers["last" if r == "last" else "first"]) for r in layers}
        slope = {r: slope["last" if r == "last" else "first"] for r in layers}
    near = {r: layers["last" if r == "last" else "first"] for r in layers}
    head_bound = timing is not None and layers["last"] * layer_s + head_s >= max(layers.values()) * layer_s
    busiest = layers["last"] if head_bound else max(layers.values())
    offload = probes.get("optimizer") if stages == 1 and int(plan.zero_stage) > 0 else None
    return StageProblem(
        n_layers=n_layers, n_stages=stages, n_micro=int(plan.grad_accum), vpp=int(plan.vpp), base_s=base.step, base_period_s=base.period,
        base_layers=layers, layer_s=layer_s, edge_s=edge, fixed_bytes={r: total[r] - near[r] * slope[r] for r in layers}, layer_bytes=slope,
        hbm_limit_bytes=hbm, host_fixed_bytes=base.host, host_limit_bytes=host, options=_options(probes, near, busiest),
        partition=timing is not None, optimizer_bytes=base.first - offload.first if offload else 0.0,
        optimizer_host_bytes=offload.host - base.host if offload else 0.0, optimizer_s=offload.step - base.step if offload else 0.0,
        fractional=offload is not None and (plan.framework == "megatron" or int(plan.zero_stage) == 3),
    )  # fmt: skip


def _options(probes: dict[str, _Probe], near: dict[str, int], busiest: int) -> tuple[Option, ...]:
    base, out = probes["base"], []
    for name in ("full", "offload"):
        if name in probes:
            p = probes[name]
            freed = {r: ((base.last - p.last) if r == "last" else (base.first - p.first)) / n for r, n in near.items()}
            host = max(p.host - base.host, 0.0) / near["first"]
            out.append(Option(name=name, extra_s=(p.period - base.period) / busiest, freed_bytes=freed, host_bytes=host))
    return tuple(out)


def _layers(plan: ParallelPlan, n_layers: int) -> dict[str, int]:
    """Layers of each role as the plan has them."""
    stages, first, last = int(plan.pp), int(plan.layers_first), int(plan.layers_last)
    if stages == 1:
        return {"first": n_layers}
    even = n_layers // stages
    if not (first or last):
        return {r: even for r in ("first", "middle", "last") if r != "middle" or stages > 2}
    out = {"first": first, "middle": (n_layers - first - last) // max(stages - 2, 1), "last": last}
    return out if stages > 2 else {"first": first, "last": last}


def _timing(n_layers: int, stages: int, layers: dict[str, int], probes: dict[str, _Probe]) -> tuple[float, float] | None:
    """(seconds of a layer, of the head) from a front-heavy and a back-heavy split; None when they do not explain the plan's own split."""
    big = n_layers - stages + 1
    if big == layers["first"] or big == layers["last"]:
        return None
    layer_s = probes["first"].period / big
    head_s = probes["last"].period - probes["first"].period
    explained = max(max(layers.values()) * layer_s, layers["last"] * layer_s + head_s)
    return (layer_s, head_s) if abs(explained - probes["base"].period) <= 0.005 * probes["base"].period else None
