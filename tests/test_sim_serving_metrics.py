"""Metrics of a run: definitions on hand-made times, goodput, and the verdict on overload."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.serving_memory import ServeMemory
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.gaps import FOLD, GapHistogram
from roofplan.sim.serve_result import ServeResult
from roofplan.sim.serving_metrics import Slo, attained, goodput_per_s, latencies, report, saturation, stats

MEMORY = ServeMemory(
    weights_bytes=1.0, activations_bytes=0.0, context_bytes=0.0, kv_bytes=1.0, limit_bytes=2.0, kv_bytes_per_token=1.0, kv_blocks=1
)


def result(arrival, first, finish, output) -> ServeResult:
    n = len(arrival)
    work = ServeWorkload(arrival_s=np.array(arrival, float), prompt_tokens=np.full(n, 10), output_tokens=np.array(output))
    rejected = np.flatnonzero(np.isnan(np.array(finish, float)))
    return ServeResult(
        work=work, first_s=np.array(first, float), finish_s=np.array(finish, float), rejected=rejected, gaps=GapHistogram(), n_steps=1,
        n_preempted=0, busy_s=1.0, end_s=float(np.nanmax(finish)), n_gpus=2, n_replicas=1, memory=MEMORY, seed=0,
    )  # fmt: skip


def test_latencies_by_hand():
    run = result([0, 1, 2], [1, 3, np.nan], [5, 3, np.nan], [5, 1, 7])
    found = latencies(run)
    assert found["ttft_s"].tolist() == [1, 2]
    assert found["tpot_s"].tolist() == [1]
    assert found["e2e_s"].tolist() == [5, 2]
    assert attained(run, Slo(ttft_s=1.5)).tolist() == [True, False, False]
    assert goodput_per_s(run, Slo(ttft_s=2.0, tpot_s=1.0)) == pytest.approx(2 / 5)
    assert goodput_per_s(run, Slo(tpot_s=0.5)) == pytest.approx(1 / 5)


def test_report_counts_cost_and_energy_of_all_cards():
    run = result([0, 1], [1, 2], [3600, 3600], [500, 500])
    cluster, gpu = registry.cluster("a100-80gb-sxm", 2), registry.accelerator("a100-80gb-sxm")
    out = report(run, cluster, gpu, Slo(), 0.1)
    assert out["cost_usd_per_mtoken"] == pytest.approx(2 * cluster.on_demand_usd_per_h / 1000 * 1e6)
    assert out["energy_j_per_token_at_tdp"] == pytest.approx(2 * gpu.tdp_w * 3600 / 1000)
    assert out["slo"] == {"ttft_s": None, "tpot_s": None, "e2e_s": None}


@pytest.mark.parametrize(("load", "verdict"), [(0.5, False), (1.3, True)])
def test_a_growing_wait_is_an_overload_and_its_growth_says_how_much(load, verdict):
    """A single server at load ρ > 1: the wait grows by 1 − 1/ρ seconds a second."""
    n, rng = 3000, np.random.default_rng(1)
    arrival = np.cumsum(rng.exponential(1 / load, n))
    finish = np.zeros(n)
    for i in range(n):
        finish[i] = max(arrival[i], finish[i - 1] if i else 0.0) + 1.0
    found = saturation(result(arrival, finish, finish, np.ones(n, int)))
    assert found["saturated"] is verdict
    if verdict:
        assert found["growth"] == pytest.approx(load - 1, rel=0.15)


def test_short_runs_are_not_judged():
    assert saturation(result([0] * 5, [1] * 5, [2] * 5, [3] * 5))["judged"] is False


def test_gap_histogram_against_numpy():
    rng = np.random.default_rng(0)
    gaps = rng.lognormal(np.log(3e10), 0.7, 50_000).astype(np.int64)
    kept = GapHistogram()
    for gap in gaps.tolist():
        kept.ps.append(gap)
        kept.counts.append(2)
        if len(kept.ps) > FOLD // 8:
            kept.fold()
    both = GapHistogram()
    both.merge(kept)
    assert both.n_tokens == 100_000
    assert both.mean_s() == pytest.approx(gaps.mean() / 1e12, rel=1e-12)
    for q in (0.5, 0.9, 0.99, 0.999):
        assert both.quantile_s(q) == pytest.approx(np.quantile(gaps, q) / 1e12, rel=0.01)
    assert (GapHistogram().mean_s(), GapHistogram().quantile_s(0.5)) == (0, 0)


def test_stats_and_promises():
    assert stats(np.arange(1001.0)) == pytest.approx({"mean": 500, "p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99_9": 999})
    assert set(stats(np.zeros(0)).values()) == {0.0}
    with pytest.raises(BadInput, match="tpot_s=0 must be more than 0"):
        Slo(tpot_s=0)
