"""Predicts a measured serving point by playing its load in the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..scenarios import registry
from ..scenarios.serving import Floats64, ServeWorkload, ServingEngine
from ..sim.arrivals import OUTPUT_STREAM, PROMPT_STREAM, uniform_lengths
from ..sim.serving import ServeResult, simulate_serving
from .serving_points import ServePoint

WAVES = 10
"""Requests per client of a closed-loop benchmark (InferenceX sends ten per concurrency)."""
OFFLINE_REQUESTS = 2000
"""Requests of a maximum-throughput run: enough that filling and draining the batch no longer shows."""


def predict(point: ServePoint, engine: ServingEngine | None = None) -> dict[str, float]:
    """Every metric of one point: latencies in seconds (mean, p50), tokens per second. BadInput when the layout cannot run.

    A closed loop of ``c`` clients that start together is a first-come queue with ``c`` seats and everything queued at time 0: client
    ``i >= c`` starts when the ``i-c``-th request finishes, which is where its TTFT counts from.
    """
    replicas = max(point.n_gpus // point.plan.n_gpus, 1)
    clients = point.concurrency or OFFLINE_REQUESTS
    per_replica = -(-clients // replicas)
    n = per_replica if point.static_batch or not point.concurrency else max(per_replica * WAVES, 20)
    low = point.lengths_low_frac
    prompt = uniform_lengths(n, max(1, round(point.isl * low)), point.isl, stream=PROMPT_STREAM)
    output = uniform_lengths(n, max(1, round(point.osl * low)), point.osl, stream=OUTPUT_STREAM)
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=prompt, output_tokens=output)
    plan = replace(point.plan, max_num_seqs=per_replica) if point.concurrency else point.plan
    cluster = registry.cluster(point.gpu, point.plan.n_gpus)
    result = simulate_serving(registry.model(point.model), cluster, plan, work, engine=engine)
    clients = per_replica if point.concurrency else 0
    return _metrics(result, replicas, point.n_gpus, clients)


def _metrics(result: ServeResult, replicas: int, n_gpus: int, clients: int) -> dict[str, float]:
    work, served = result.work, np.isfinite(result.finish_s)
    finish, first = result.finish_s[served], result.first_s[served]
    prompt, output = work.prompt_tokens[served], work.output_tokens[served]
    start = _seat_times(finish, clients) if clients else np.zeros(len(finish))
    ttft = first - start
    many = output > 1
    tpot = (finish - first)[many] / (output[many] - 1)
    out_rate, all_rate = replicas * output.sum() / result.end_s, replicas * (output.sum() + prompt.sum()) / result.end_s
    return {
        "ttft_s": float(ttft.mean()),
        "ttft_p50_s": float(np.median(ttft)),
        "output_tokens_per_s": float(out_rate),
        "output_tokens_per_s_per_gpu": float(out_rate / n_gpus),
        "total_tokens_per_s_per_gpu": float(all_rate / n_gpus),
    } | ({"tpot_s": float(tpot.mean()), "tpot_p50_s": float(np.median(tpot))} if many.any() else {})


def _seat_times(finish: Floats64, clients: int) -> Floats64:
    """When each request of a closed loop was sent: at 0 for the first ``clients``, then at each finish in turn."""
    return np.concatenate([np.zeros(min(clients, len(finish))), np.sort(finish)[: max(len(finish) - clients, 0)]])
