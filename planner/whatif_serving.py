"""What-if sweeps of serving: latency against rate, and the price of a promise, as tidy rows for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import ServeWorkload
from ..sim.arrivals import OUTPUT_STREAM, lengths, poisson
from ..sim.deployment import simulate_deployment
from ..sim.serving_metrics import Slo, attained, latencies, saturation
from .serve_ask import ServeAsk
from .serve_search import plan_serving


def rate_rows(
    model: ModelSpec,
    cluster: Cluster,
    deployment: Deployment,
    rates: Iterable[float],
    *,
    prompt_tokens: int,
    output_tokens: int,
    spread_frac: float = 0.0,
    n_requests: int = 600,
    slo: Slo | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row a rate (requests a second, all replicas together): mean, p50 and p99 of TTFT and TPOT, tokens a second, share in the SLO.

    Lengths are log-normal with ``spread_frac`` as coefficient of variation (0: all equal). Raises BadInput for a rate that is not positive.
    """
    promised = slo or Slo()
    prompt = lengths(n_requests, prompt_tokens, spread_frac, seed)
    output = lengths(n_requests, output_tokens, spread_frac, seed, OUTPUT_STREAM)
    rows = []
    for rate in rates:
        if not 0 < rate < 1e9:
            raise BadInput(f"rate={rate} must be a number of requests a second, more than 0")
        work = ServeWorkload(arrival_s=poisson(n_requests, rate, seed), prompt_tokens=prompt, output_tokens=output, source="made up")
        result = simulate_deployment(model, cluster, deployment, work, seed=seed)
        row: dict[str, Any] = {"rate_per_s": rate}
        for name, values in latencies(result).items():
            row |= {name: float(values.mean())} | {
                name.replace("_s", f"_p{q}_s"): float(np.quantile(values, q / 100)) if len(values) else 0.0 for q in (50, 99)
            }
        row["output_tokens_per_s"] = float(work.output_tokens.sum() / result.end_s)
        row["attained_frac"] = float(attained(result, promised).mean())
        row["saturated"] = saturation(result)["saturated"]
        rows.append(row)
    return rows


def slo_rows(ask: ServeAsk, tpots_s: Iterable[float]) -> list[dict[str, Any]]:
    """One row a promised time per output token: the best plan's layout, goodput, latencies, price; ``fits`` False if none keeps it."""
    rows = []
    for tpot_s in tpots_s:
        decision = plan_serving(replace(ask, slo=replace(ask.slo, tpot_s=tpot_s)), top=1)
        row: dict[str, Any] = {"tpot_s": tpot_s, "fits": bool(decision.choices)}
        if decision.choices:
            best = decision.choices[0]
            row |= {
                "layout": " + ".join(f"{part.copies} x {part.played.candidate.describe()}" for part in best.parts),
                "goodput_per_s": best.goodput_per_s,
                "ttft_s": best.ttft_s,
                "predicted_tpot_s": best.tpot_s,
                "output_tokens_per_s_per_gpu": best.output_tokens_per_s_per_gpu,
                "cost_usd_per_mtoken": best.usd_per_mtoken,
            }
        rows.append(row)
    return rows
