"""Predicts a measured serving point by playing its load in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from ..costmodels.serving_ops import ServeSystem, serve_system
from ..scenarios import registry
from ..scenarios.serving import Floats64, Ints64, ServeWorkload, ServingEngine, serving_engine
from ..sim.arrivals import OUTPUT_STREAM, PROMPT_STREAM, uniform_lengths
from ..sim.replica_kind import replica_model
from .closed_loop import closed_loop
from .serving_points import ServePoint

OFFLINE_REQUESTS = 2000
"""Requests of a maximum-throughput run: enough that filling and draining the batch no longer shows."""


def predict(point: ServePoint, engine: ServingEngine | None = None) -> dict[str, float]:
    """Every metric of one point: latencies in seconds (mean, p50), tokens per second. BadInput when the layout cannot run.

    A concurrency is a closed loop of that many clients; a static batch and a maximum-throughput run are queued whole at time 0.
    """
    replicas = max(point.n_gpus // point.plan.n_gpus, 1)
    clients = point.concurrency or OFFLINE_REQUESTS
    per_replica = -(-clients // replicas)
    looped = point.concurrency > 0 and not point.static_batch
    n = max(per_replica * point.recipe.waves, 20) if looped else per_replica
    low = point.recipe.lengths_low_frac
    prompt = uniform_lengths(n, max(1, round(point.isl * low)), point.isl, stream=PROMPT_STREAM)
    output = uniform_lengths(n, max(1, round(point.osl * low)), point.osl, stream=OUTPUT_STREAM)
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=prompt, output_tokens=output)
    engine = point.engine_of(engine or serving_engine(point.plan.engine))
    if not looped:  # the engine is called in its own process
        engine = replace(engine, request_cpu_s=0.0, frontend_cpu_s=0.0)
    seats = min(per_replica, point.plan.max_num_seqs or per_replica)
    plan = replace(point.plan, max_num_seqs=seats) if point.concurrency else point.plan
    model, system = registry.model(point.model), replace(_system(point.gpu, point.plan.n_gpus), engine=engine)
    kind = replica_model(model, plan, system, work)
    run = closed_loop(kind, plan, engine, work, per_replica, point.recipe)
    served = np.isfinite(run.finish_s)
    rate = replicas / run.end_s / point.n_gpus
    return _latencies(run.sent_s[served], run.first_s[served], run.finish_s[served], output[served]) | {
        "output_tokens_per_s": float(rate * point.n_gpus * output[served].sum()),
        "output_tokens_per_s_per_gpu": float(rate * output[served].sum()),
        "total_tokens_per_s_per_gpu": float(rate * (output + prompt)[served].sum()),
    }


@cache
def _system(gpu: str, n_gpus: int) -> ServeSystem:
    """The card and links of a replica, whose curves are unpacked once."""
    return serve_system(registry.cluster(gpu, n_gpus), serving_engine("vllm"))


STATS: dict[str, Callable[[Floats64], float]] = {
    "": lambda v: float(v.mean()),
    "_p50": lambda v: float(np.median(v)),
    "_p90": lambda v: float(np.quantile(v, 0.9)),
    "_p99": lambda v: float(np.quantile(v, 0.99)),
}


def _latencies(sent: Floats64, first: Floats64, finish: Floats64, output: Ints64) -> dict[str, float]:
    """Mean and quantiles of TTFT and TPOT; no TPOT where every answer is one token."""
    found = {"ttft": first - sent}
    many = output > 1
    if many.any():
        found["tpot"] = (finish - first)[many] / (output[many] - 1)
    return {f"{name}{stat}_s": of(values) for name, values in found.items() for stat, of in STATS.items()}
