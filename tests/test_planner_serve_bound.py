"""Closed-form bounds of one replica: no simulation beats them, and they are not idle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.serving_ops import serve_system
from roofplan.planner import serve_bound
from roofplan.planner.serve_bound import ATTAIN_FRAC, Load, serve_bounds
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, serving_engine
from roofplan.sim.arrivals import poisson
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.replica_kind import replica_model
from roofplan.sim.serving_metrics import Slo, attained
from serve_asks import ask, trace


def replica(question, work, **fields):
    plan = EnginePlan(**({"token_budget": 2048, "max_num_seqs": 256} | fields))
    return plan, replica_model(question.model, plan, serve_system(question.cluster, serving_engine("vllm")), work)


def played(question, plan, kind, work):
    return simulate_deployment(question.model, question.cluster, Deployment(plan=plan), work, kinds={"serve": kind})


@pytest.mark.parametrize(("isl", "osl", "least"), [(200, 400, 0.7), (4000, 50, 0.7), (1000, 1000, 0.5), (4000, 500, 0.6), (20000, 20, 0.6)])
@pytest.mark.parametrize("tp", [1, 2])
def test_no_simulated_rate_beats_the_bound_and_a_full_replica_comes_near(isl, osl, least, tp):
    question = ask(prompt_tokens=isl, output_tokens=osl, slo=Slo())
    work = question.requests(1500)
    plan, kind = replica(question, work, tp=tp)
    bounds = serve_bounds(Load(work), plan, kind, Slo())
    assert bounds.why == ""
    rate = len(work) / played(question, plan, kind, work).end_s
    assert least * bounds.mixed_per_s < rate <= bounds.mixed_per_s


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 6000), st.integers(1, 600), st.sampled_from([512, 2048, 8192]), st.sampled_from([8, 64, 256]),
    st.sampled_from([0, 200, 4000]), st.integers(0, 5),
)  # fmt: skip
def test_no_random_workload_beats_the_bounds(isl, osl, budget, seats, blocks, seed):
    """Mixed lengths, all queued at once: neither the rate, nor the mean latencies, nor the mean batch go past the closed forms."""
    rng = np.random.default_rng(seed)
    n = 400
    work = ServeWorkload(
        arrival_s=np.zeros(n), prompt_tokens=rng.integers(1, isl + 1, n), output_tokens=rng.integers(1, osl + 1, n),
    )  # fmt: skip
    question = ask(slo=Slo())
    plan, kind = replica(question, work, token_budget=budget, max_num_seqs=seats, kv_blocks=blocks)
    bounds = serve_bounds(Load(work), plan, kind, Slo())
    result = played(question, plan, kind, work)
    served = np.isfinite(result.finish_s)
    if bounds.why:
        assert bounds.why.startswith("memory")
        assert served.mean() < ATTAIN_FRAC
        return
    assert n / result.end_s <= bounds.mixed_per_s * (1 + 1e-9)
    assert result.first_s[served].mean() >= bounds.ttft_s * (1 - 1e-9)
    assert result.finish_s[served].mean() >= bounds.e2e_s * (1 - 1e-9)


@pytest.mark.parametrize(("isl", "osl", "pp"), [(200, 400, 2), (4000, 50, 2), (1000, 1000, 4), (4000, 500, 8)])
def test_no_pipeline_beats_the_bound_of_its_slowest_stage(isl, osl, pp):
    """All queued at once; the random mix of lengths leaves bubbles, a full pipeline still comes within half of the bound."""
    question, rng = ask(gpu_name="l40s", n_gpus=8, slo=Slo()), np.random.default_rng(pp)
    work = ServeWorkload(
        arrival_s=np.zeros(600), prompt_tokens=rng.integers(1, 2 * isl, 600), output_tokens=rng.integers(1, 2 * osl, 600),
    )  # fmt: skip
    plan, kind = replica(question, work, pp=pp, max_num_seqs=64)
    bounds, result = serve_bounds(Load(work), plan, kind, Slo()), played(question, plan, kind, work)
    assert 0.4 * bounds.mixed_per_s < 600 / result.end_s <= bounds.mixed_per_s
    assert result.first_s.mean() >= bounds.ttft_s
    assert result.finish_s.mean() >= bounds.e2e_s


def test_bins_of_token_counts_cover_them_all_and_cost_little(monkeypatch):
    question = ask(slo=Slo(tpot_s=0.02))
    work = question.requests(100)
    plan, kind = replica(question, work, token_budget=8192, max_num_seqs=1024)
    binned = serve_bounds(Load(work), plan, kind, question.slo)
    monkeypatch.setattr(serve_bound, "FINE", 1_000_000)
    serve_bound._edges.cache_clear()
    every = serve_bounds(Load(work), plan, kind, question.slo)
    serve_bound._edges.cache_clear()
    for name in ("mixed_per_s", "prefill_per_s", "decode_per_s"):
        assert 1 <= getattr(binned, name) / getattr(every, name) < 1.005


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 6000), st.integers(1, 600), st.sampled_from([512, 8192]), st.sampled_from([8, 256]), st.sampled_from([0, 900]),
       st.sampled_from([2, 3, 8]), st.integers(0, 5))  # fmt: skip
def test_no_random_pipeline_beats_the_bounds(isl, osl, budget, seats, blocks, pp, seed):
    rng = np.random.default_rng(seed)
    n = 200
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=rng.integers(1, isl + 1, n), output_tokens=rng.integers(1, osl + 1, n))
    question = ask(gpu_name="l40s", n_gpus=8, slo=Slo())
    plan, kind = replica(question, work, token_budget=budget, max_num_seqs=seats, kv_blocks=blocks, pp=pp)
    bounds, result = serve_bounds(Load(work), plan, kind, Slo()), played(question, plan, kind, work)
    assert bounds.why == ""
    assert n / result.end_s <= bounds.mixed_per_s * (1 + 1e-9)
    assert result.first_s.mean() >= bounds.ttft_s * (1 - 1e-9)
    assert result.finish_s.mean() >= bounds.e2e_s * (1 - 1e-9)


@pytest.mark.parametrize("tpot_s", [0.008, 0.012, 0.02, 0.04])
def test_no_rate_that_keeps_the_promised_tpot_beats_its_bound(tpot_s):
    question = ask(prompt_tokens=1000, output_tokens=300)
    slo = Slo(tpot_s=tpot_s)
    work = question.requests(1200)
    plan, kind = replica(question, work)
    bound = serve_bounds(Load(work), plan, kind, slo).mixed_per_s
    loose = serve_bounds(Load(work), plan, kind, Slo()).mixed_per_s
    assert bound <= loose
    result = played(question, plan, kind, question.at_rate(work, bound * 1.02))
    assert attained(result, slo)[300:].mean() < ATTAIN_FRAC or bound == loose


def test_prefill_and_decode_apart_carry_no_more_than_their_bounds():
    question = ask(prompt_tokens=3000, output_tokens=300, slo=Slo())
    work = question.requests(800)
    plan, kind = replica(question, work, token_budget=8192)
    bounds = serve_bounds(Load(work), plan, kind, Slo())
    assert 1 / bounds.mixed_per_s <= 1 / bounds.prefill_per_s + 1 / bounds.decode_per_s
    prompts = ServeWorkload(arrival_s=work.arrival_s, prompt_tokens=work.prompt_tokens, output_tokens=np.ones(800, np.int64))
    rate = 800 / played(question, plan, kind, prompts).end_s
    assert 0.8 * bounds.prefill_per_s < rate <= bounds.prefill_per_s
    assert bounds.decode_per_s > bounds.mixed_per_s


@pytest.mark.parametrize(
    ("isl", "osl", "blocks"), [(100, 4000, 0), (100, 4000, 2000), (2000, 300, 0), (8000, 30, 4000), (1, 2, 0), (30, 1000, 500)]
)
def test_no_decode_pool_beats_its_bound(isl, osl, blocks):
    """All prompts at once on three prefill replicas, one replica that decodes; each answer token reads the prompt and those before it."""
    question = ask(n_gpus=4, prompt_tokens=isl, output_tokens=osl, slo=Slo())
    rng = np.random.default_rng(osl)
    work = ServeWorkload(
        arrival_s=np.zeros(400), prompt_tokens=rng.integers(1, 2 * isl + 1, 400), output_tokens=rng.integers(1, 2 * osl + 1, 400),
    )  # fmt: skip
    plan, kind = replica(question, work, token_budget=8192, kv_blocks=blocks)
    bounds = serve_bounds(Load(work), plan, kind, Slo())
    deployment = Deployment(plan=plan, prefill=plan, n_prefill=3)
    result = simulate_deployment(question.model, question.cluster, deployment, work, kinds={"prefill": kind, "decode": kind})
    if bounds.why:
        assert bounds.why.startswith("memory")
        return
    assert np.isfinite(result.finish_s).sum() / result.end_s <= bounds.decode_per_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("slo", "blocks", "why"),
    [(Slo(ttft_s=0.001), 0, "ttft: the prompt alone takes"), (Slo(tpot_s=1e-4), 0, "tpot: one token takes"),
     (Slo(), 10, "memory: 2,200 tokens are more than the 160 of the KV pool")],
)  # fmt: skip
def test_a_promise_that_cannot_be_kept_is_named(slo, blocks, why):
    question = ask()
    work = question.requests(1)
    plan, kind = replica(question, work, kv_blocks=blocks)
    assert serve_bounds(Load(work), plan, kind, slo).why.startswith(why)


def test_a_cache_saves_only_what_was_named_before():
    work = trace(3)
    again = ServeWorkload(
        arrival_s=np.arange(6.0), prompt_tokens=np.full(6, 1000), output_tokens=np.full(6, 10), block_starts=np.arange(7) * 2,
        block_ids=np.array([1, 2, 1, 2, 1, 3, 4, 5, 4, 5, 1, 6]), block_id_tokens=400,
    )  # fmt: skip
    assert Load(work).uncached.tolist() == [1000, 1001, 1002]
    assert Load(again).uncached.tolist() == [1000, 200, 600, 1000, 200, 600]


def test_speculation_raises_the_bound_by_no_more_than_its_tokens_a_step():
    from roofplan.scenarios.serving_parts import Speculation

    question = ask(prompt_tokens=500, output_tokens=500, slo=Slo())
    work = question.requests(300)
    plan, kind = replica(question, work)
    plain = serve_bounds(Load(work), plan, kind, Slo())
    faster, _ = replica(question, work, speculation=Speculation(method="chain", draft_tokens=1, accept_frac=0.85))
    bound = serve_bounds(Load(work), faster, kind, Slo())
    assert plain.mixed_per_s < bound.mixed_per_s <= 2 * plain.mixed_per_s
    spec_plan, spec_kind = replica(question, work, speculation=Speculation(method="chain", draft_tokens=1, accept_frac=0.85))
    result = played(question, spec_plan, spec_kind, question.at_rate(work, bound.mixed_per_s))
    assert len(work) / result.end_s <= bound.mixed_per_s
    assert poisson(3, 1.0).shape == (3,)
