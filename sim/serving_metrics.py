"""What a serving run amounts to: latency distributions, goodput, whether it was overloaded, cost and energy a token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator, Cluster
from ..scenarios.serving import Floats64
from .serve_result import PoolUse, ServeResult

Bools = NDArray[np.bool_]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
GROWTH_LIMIT = 0.02
"""TTFT that grows by this many seconds a second means arrivals outrun service by 2 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Promised latencies in seconds; infinity where nothing is promised. BadInput unless positive."""

    ttft_s: float = float("inf")
    tpot_s: float = float("inf")
    e2e_s: float = float("inf")

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name}={getattr(self, name)} must be more than 0")


def stats(values: Floats64) -> dict[str, float]:
    """Mean and quantiles; all 0 when there are none."""
    if not len(values):
        return dict.fromkeys(("mean", *QUANTILES), 0.0)
    found = np.quantile(values, list(QUANTILES.values()))
    return {"mean": float(values.mean())} | {name: float(v) for name, v in zip(QUANTILES, found, strict=True)}


def latencies(result: ServeResult) -> dict[str, Floats64]:
    """Seconds per served request: TTFT and E2E from arrival, TPOT = (last − first) / (output tokens − 1) where there is more than one."""
    served = np.isfinite(result.finish_s)
    arrival, first, finish = result.work.arrival_s[served], result.first_s[served], result.finish_s[served]
    steps = result.work.output_tokens[served] - 1
    many = steps > 0
    return {"ttft_s": first - arrival, "tpot_s": (finish - first)[many] / steps[many], "e2e_s": finish - arrival}


def attained(result: ServeResult, slo: Slo) -> Bools:
    """Which requests kept every promise; a single token has no TPOT to miss, a rejected request keeps none."""
    first, finish, work = result.first_s, result.finish_s, result.work
    tpot = (finish - first) / np.maximum(work.output_tokens - 1, 1)
    kept: Bools = (first - work.arrival_s <= slo.ttft_s) & (tpot <= slo.tpot_s) & (finish - work.arrival_s <= slo.e2e_s)
    return kept


def goodput_per_s(result: ServeResult, slo: Slo) -> float:
    """Requests that kept every promise, per second of the run."""
    return float(attained(result, slo).sum() / result.end_s) if result.end_s > 0 else 0.0


def saturation(result: ServeResult) -> dict[str, Any]:
    """Whether arrivals outran service: TTFT of the last third of arrivals against the first third.

    ``growth`` is the rise of the median in seconds per second of arrivals; overloaded by a factor ρ it tends to ``1 − 1/ρ``. The verdict
    needs growth over GROWTH_LIMIT and a median at least doubled; a run too short to tell (under 30 requests, or all at once) is not judged.
    """
    served = np.isfinite(result.finish_s)
    arrival, wait = result.work.arrival_s[served], (result.first_s - result.work.arrival_s)[served]
    third = len(arrival) // 3
    if third < 10 or arrival[-1] <= arrival[0]:
        return {"saturated": False, "judged": False, "growth": 0.0}
    early, late = float(np.median(wait[:third])), float(np.median(wait[-third:]))
    growth = (late - early) / float(np.median(arrival[-third:]) - np.median(arrival[:third]) or 1.0)
    return {"saturated": bool(growth > GROWTH_LIMIT and late > 2 * early), "judged": True, "growth": growth}


def report(result: ServeResult, cluster: Cluster, gpu: Accelerator, slo: Slo, wall_s: float) -> dict[str, Any]:
    """The stable JSON form of a run. Cost is on-demand (0: no public price); energy is at the cards' TDP, an upper bound."""
    work = result.work
    served = np.isfinite(result.finish_s)
    out_tokens, prompt_tokens = int(work.output_tokens[served].sum()), int(work.prompt_tokens[served].sum())
    span = result.end_s or 1.0
    gpu_s = result.gpu_s or result.n_gpus * span
    usd = cluster.on_demand_usd_per_h * gpu_s / 3600
    verdict = saturation(result)
    return {
        "n_requests": len(work), "n_rejected": len(result.rejected), "n_iterations": result.n_steps,
        **{name: stats(values) for name, values in latencies(result).items()},
        "itl_s": {"mean": result.gaps.mean_s()} | {name: result.gaps.quantile_s(q) for name, q in QUANTILES.items()},
        "output_tokens_per_s": out_tokens / span, "prompt_tokens_per_s": prompt_tokens / span, "requests_per_s": int(served.sum()) / span,
        "goodput_per_s": goodput_per_s(result, slo),
        "slo": {name: value if np.isfinite(value) else None for name in ("ttft_s", "tpot_s", "e2e_s") for value in [getattr(slo, name)]},
        "saturated": verdict["saturated"], "saturation": verdict, "preemptions": result.n_preempted,
        "cache_hit_frac": result.cache_hit_frac,
        "busy_frac": result.busy_s / (span * result.n_replicas), "simulated_s": result.end_s,
        "kv_blocks": result.memory.kv_blocks, "weights_bytes": result.memory.weights_bytes, "kv_bytes": result.memory.kv_bytes,
        "cost_usd_per_mtoken": usd / out_tokens * 1e6 if out_tokens else 0.0,
        "energy_j_per_token_at_tdp": gpu.tdp_w * gpu_s / out_tokens if out_tokens else 0.0,
        "gpu_s": gpu_s, "pools": [_pool(pool, span) for pool in result.pools], "links": [dataclasses.asdict(link) for link in result.links],
        "cache_tiers": [dataclasses.asdict(tier) for tier in result.tiers],
        "replicas_over_time": [{"at_s": at, "n_replicas": n} for at, n in result.scaled],
        "gpu": gpu.name, "n_gpus": result.n_gpus, "n_replicas": result.n_replicas, "wall_s": wall_s, "seed": result.seed,
    }  # fmt: skip


def _pool(pool: PoolUse, span_s: float) -> dict[str, Any]:
    busy = [seconds / span_s for seconds in pool.busy_s]
    mean = sum(busy) / len(busy) if busy else 0.0
    return {
        "name": pool.name, "n_replicas": len(busy), "gpus_each": pool.gpus_each, "n_steps": pool.n_steps,
        "busy_frac": mean, "busiest_frac": max(busy, default=0.0), "kv_blocks": pool.memory.kv_blocks,
        **({"bubble_frac": sum(pool.bubble_s) / (pool.n_stages * span_s * len(busy))} if pool.n_stages > 1 else {}),
    }  # fmt: skip
