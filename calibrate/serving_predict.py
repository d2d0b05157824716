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
from .disagg_predict import n_requests, play_split
from .serving_disagg import Split
from .serving_layout import NODE_GPUS
from .serving_points import ServePoint


def predict(point: ServePoint, engine: ServingEngine | None = None) -> dict[str, float]:
    """Every metric of one point: latencies in seconds (mean, p50), tokens per second. BadInput when the layout cannot run.

    A concurrency is a closed loop of that many clients; a static batch and a maximum-throughput run are queued whole at time 0. Equal
    disaggregated settings, which overlapping tables repeat, are played once.
    """
    engine = point.engine_of(engine or serving_engine(point.plan.engine))
    if point.split:
        key = repr((point.model, point.gpu, point.n_gpus, point.isl, point.osl, point.concurrency, point.plan, point.split, engine))
        if key not in _split_metrics:
            _split_metrics[key] = _predict_split(point, point.split, engine)
        return _split_metrics[key]
    replicas = max(point.n_gpus // point.plan.n_gpus, 1)
    clients = point.concurrency or point.recipe.n_requests
    per_replica = -(-clients // replicas)
    looped = point.concurrency > 0 and not point.static_batch
    work = _work(point, max(per_replica * point.recipe.waves, 20) if looped else per_replica)
    if not looped:  # the engine is called in its own process
        engine = replace(engine, request_cpu_s=0.0, frontend_cpu_s=0.0, token_cpu_s=0.0)
    seats = min(per_replica, point.plan.max_num_seqs or per_replica)
    plan = replace(point.plan, max_num_seqs=seats) if point.concurrency else point.plan
    system = replace(_system(point.cluster or point.gpu, point.plan.n_gpus), engine=engine)
    kind = replica_model(registry.model(point.model), plan, system, work)
    run = closed_loop(kind, plan, engine, work, per_replica, point.recipe)
    lengths = work.prompt_tokens, work.output_tokens
    return _metrics(run.sent_s, run.first_s, run.finish_s, *lengths, replicas / run.end_s / point.n_gpus, point.n_gpus)


_split_metrics: dict[str, dict[str, float]] = {}


def _predict_split(point: ServePoint, split: Split, engine: ServingEngine) -> dict[str, float]:
    system = replace(_system(point.gpu, -(-point.n_gpus // NODE_GPUS) * NODE_GPUS), engine=engine)
    work = _work(point, n_requests(point.concurrency, split.rounds))
    run = play_split(registry.model(point.model), system, point.plan, split, engine, work, point.concurrency)
    return _metrics(run.sent_s, run.first_s, run.finish_s, run.prompt, run.output, 1 / run.end_s / point.n_gpus, point.n_gpus)


def _work(point: ServePoint, n: int) -> ServeWorkload:
    """``n`` requests of the lengths that the point's suite draws."""
    low, high = point.recipe.lengths_low_frac, point.recipe.lengths_high_frac

    def drawn(nominal: int, stream: int) -> Ints64:
        return uniform_lengths(n, max(1, round(nominal * low)), max(1, round(nominal * high)), stream=stream)

    return ServeWorkload(
        arrival_s=np.zeros(n), prompt_tokens=drawn(point.isl, PROMPT_STREAM), output_tokens=drawn(point.osl, OUTPUT_STREAM)
    )


def _metrics(
    sent: Floats64, first: Floats64, finish: Floats64, prompt: Ints64, output: Ints64, rate: float, n_gpus: int
) -> dict[str, float]:
    """Latencies and rates of the requests served; ``rate`` is one over the GPU-seconds of one replica's run."""
    served = np.isfinite(finish)
    return _latencies(sent[served], first[served], finish[served], output[served]) | {
        "output_tokens_per_s": float(rate * n_gpus * output[served].sum()),
        "output_tokens_per_s_per_gpu": float(rate * output[served].sum()),
        "total_tokens_per_s_per_gpu": float(rate * (output + prompt)[served].sum()),
    }


@cache
def _system(cluster: str, n_gpus: int) -> ServeSystem:
    """The card and links of a replica, whose curves are unpacked once."""
    return serve_system(registry.cluster(cluster, n_gpus), serving_engine("vllm"))


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
