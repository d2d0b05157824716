"""What the requests of one run saw, and which promise it broke."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..sim.serve_result import ServeResult
from ..sim.serving_metrics import attained, saturation
from .serve_ask import ServeAsk
from .serve_bound import ATTAIN_FRAC

WARM_FRAC = 0.25
"""The first requests fill an empty system and are not judged."""
BACKLOG_FRAC, NOISE = 0.93, 2.0
"""A run in whose second half fewer requests end, for each that arrives, is overloaded, if that is also more than twice the spread of a
Poisson count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the requests of one run saw: means and 95th percentiles in seconds, and the promise that failed, or ''.

    ``finished_frac`` is how many ended for each that arrived in the second half of the arrivals.
    """

    rate_per_s: float
    ttft_s: float
    tpot_s: float
    e2e_s: float
    ttft_p95_s: float
    tpot_p95_s: float
    n_preempted: int
    cache_hit_frac: float
    failed: str
    finished_frac: float = 1.0


def judge(ask: ServeAsk, result: ServeResult, rate_per_s: float, *, settled: bool = False) -> Seen:
    """The requests after the warm-up, and which promise most of them broke when under ATTAIN_FRAC keep all.

    A closed loop is ``settled``: it cannot be overloaded.
    """
    slo, work = ask.slo, result.work
    skip = int(WARM_FRAC * len(work))
    stuck = (result.finish_s == result.first_s) & (work.output_tokens > 1)  # prefilled, but never taken over by a decode replica
    result = replace(result, finish_s=np.where(stuck, np.nan, result.finish_s))
    served = np.isfinite(result.finish_s)
    ttft = (result.first_s - work.arrival_s)[skip:]
    steps = (work.output_tokens - 1)[skip:]
    e2e = (result.finish_s - work.arrival_s)[skip:]
    tpot = (e2e - ttft) / np.maximum(steps, 1)
    failed = ""
    if attained(result, slo)[skip:].mean() < ATTAIN_FRAC:
        broken = {"ttft": np.mean(~(ttft <= slo.ttft_s)), "tpot": np.mean(~(tpot <= slo.tpot_s)), "e2e": np.mean(~(e2e <= slo.e2e_s))}
        failed = max(broken, key=lambda name: broken[name])
    ended = 1.0 if settled else finished_frac(result)
    some = 1 - NOISE / math.sqrt(max(len(work) / 2, 1))
    if not failed and not settled and (saturation(result)["saturated"] or ended < min(BACKLOG_FRAC, some)):
        failed = "capacity"
    kept = served[skip:]
    if not kept.any():
        return Seen(rate_per_s=rate_per_s, ttft_s=math.inf, tpot_s=math.inf, e2e_s=math.inf, ttft_p95_s=math.inf, tpot_p95_s=math.inf,
                    n_preempted=result.n_preempted, cache_hit_frac=0.0, failed=failed or "memory", finished_frac=ended)  # fmt: skip
    many = kept & (steps > 0)
    decoded = tpot[many] if many.any() else np.zeros(1)
    return Seen(
        rate_per_s=rate_per_s, ttft_s=float(ttft[kept].mean()), tpot_s=float(decoded.mean()), e2e_s=float(e2e[kept].mean()),
        ttft_p95_s=float(np.quantile(ttft[kept], ATTAIN_FRAC)), tpot_p95_s=float(np.quantile(decoded, ATTAIN_FRAC)),
        n_preempted=result.n_preempted, cache_hit_frac=result.cache_hit_frac, failed=failed, finished_frac=ended,
    )  # fmt: skip


def finished_frac(result: ServeResult) -> float:
    """Requests that end in the second half of the arrivals' time for each that arrives in it: under 1 where a queue grows anywhere."""
    arrival = result.work.arrival_s
    half, last = (arrival[0] + arrival[-1]) / 2, arrival[-1]
    came = int(np.count_nonzero(arrival > half))
    return int(np.count_nonzero((result.finish_s > half) & (result.finish_s <= last))) / came if came else 1.0
