"""Deployments as users ask for them: equal to their parts, conserving, repeatable, and clear about what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.scenarios import registry
from roofplan.scenarios.clients import Clients
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.sim import arrivals
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.serving import simulate_serving

MODEL = registry.model("llama3-8b")
NODE = registry.cluster("h100-sxm", 8)
PLAN = EnginePlan(token_budget=1024, max_num_seqs=64)


def chat(n: int = 200, rate: float = 15.0) -> ServeWorkload:
    prompt, output = arrivals.lengths(n, 700, 0.7), arrivals.lengths(n, 120, 0.6, stream=arrivals.OUTPUT_STREAM)
    return ServeWorkload(arrival_s=arrivals.poisson(n, rate), prompt_tokens=prompt, output_tokens=output)


def test_equal_replicas_are_simulate_serving():
    work = chat()
    ours = simulate_deployment(MODEL, NODE, Deployment(plan=PLAN, n_replicas=8, router="random"), work, seed=3)
    theirs = simulate_serving(MODEL, NODE, PLAN, work, router="random", seed=3)
    assert np.array_equal(ours.finish_s, theirs.finish_s)
    assert ours.gpu_s == pytest.approx(8 * ours.end_s)


def test_replicas_apart_and_together_give_the_same():
    """Round robin needs no clock between replicas; a closed loop of more clients than requests is all of them at time 0."""
    n = 60
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=np.full(n, 300), output_tokens=np.arange(1, n + 1))
    apart = simulate_deployment(MODEL, NODE, Deployment(plan=PLAN, n_replicas=3), work)
    looped = simulate_deployment(MODEL, NODE, Deployment(plan=PLAN, n_replicas=3), work, clients=Clients(n_clients=n))
    assert np.array_equal(apart.finish_s, looped.finish_s)


def test_pools_of_different_plans_have_their_own_tables_and_memory():
    work = chat()
    wide = EnginePlan(tp=4, token_budget=4096, max_num_seqs=64)
    mixed = Deployment(plan=PLAN, n_replicas=3, prefill=wide, n_prefill=1, overlap_frac=0.5)
    result = simulate_deployment(MODEL, NODE, mixed, work, log=True)
    assert [(p.name, p.gpus_each, len(p.busy_s)) for p in result.pools] == [("prefill", 4, 1), ("decode", 1, 3)]
    assert result.pools[0].memory.weights_bytes < result.pools[1].memory.weights_bytes
    assert (result.n_gpus, result.n_replicas) == (7, 4)
    assert sorted(result.logs) == ["decode 0", "decode 1", "decode 2", "prefill 0"]
    prompts = sum(int(log.columns()["prompt_tokens"].sum()) for name, log in result.logs.items() if name.startswith("prefill"))
    assert prompts == work.prompt_tokens.sum()
    moved = sum(link.n_bytes for link in result.links if link.name.endswith(">"))
    assert moved == pytest.approx(result.memory.kv_bytes_per_token * work.prompt_tokens[work.output_tokens > 1].sum())
    assert all(0 < link.busy_frac < 1 and link.name.startswith("nvlink") for link in result.links)


def test_decode_apart_keeps_tokens_steady_under_long_prompts():
    n = 150
    work = ServeWorkload(arrival_s=arrivals.poisson(n, 6.0), prompt_tokens=np.full(n, 6000), output_tokens=np.full(n, 100))
    mixed = simulate_deployment(MODEL, NODE, Deployment(plan=PLAN, n_replicas=4), work)
    apart = simulate_deployment(MODEL, NODE, Deployment(plan=PLAN, n_replicas=2, n_prefill=2), work)
    assert apart.gaps.quantile_s(0.99) < 0.5 * mixed.gaps.quantile_s(0.99)


def test_other_nodes_cost_more_than_the_same_node():
    work = chat(60)
    far = registry.cluster("h100-sxm", 16)
    near = simulate_deployment(MODEL, NODE, Deployment(plan=PLAN, n_replicas=4, n_prefill=4), work)
    eight = EnginePlan(tp=8, token_budget=1024, max_num_seqs=64)
    there = simulate_deployment(MODEL, far, Deployment(plan=eight, n_prefill=1), work)
    assert all(link.name.startswith("nvlink") for link in near.links)
    assert all(link.name.startswith("nic") for link in there.links)
    shared = simulate_deployment(MODEL, far, Deployment(plan=eight, n_prefill=1, nic_per_gpu=False), work)
    assert {link.name for link in shared.links} == {"node 0 >", "node 1 <"}
    assert np.nanmean(shared.finish_s) > np.nanmean(there.finish_s)


DEPLOYMENTS = {
    "random": Deployment(plan=PLAN, n_replicas=3, router="random"),
    "power-of-two": Deployment(plan=PLAN, n_replicas=3, router="power-of-two"),
    "pd": Deployment(plan=PLAN, n_replicas=2, n_prefill=1, router="least-outstanding", overlap_frac=0.4),
    "split": Deployment(plan=PLAN, n_replicas=2, prefill_sm_frac=0.6, router="kv-aware"),
}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(DEPLOYMENTS)), seed=st.integers(0, 5), clients=st.sampled_from([None, 1, 9]))
def test_everything_is_served_once_and_the_seed_decides(name, seed, clients):
    work, spec = chat(50, 40.0), Clients(n_clients=clients, think_s=0.05, random_think=True) if clients else None
    runs = [simulate_deployment(MODEL, NODE, DEPLOYMENTS[name], work, seed=seed, clients=spec) for _ in range(2)]
    one, two = runs
    assert np.array_equal(one.finish_s, two.finish_s)
    assert np.all(np.isfinite(one.finish_s))
    assert np.all(one.first_s > one.work.arrival_s)
    assert np.all(one.finish_s >= one.first_s)
    assert one.gaps.n_tokens == int((work.output_tokens - 1).sum())
    assert np.all(np.diff(one.work.arrival_s) >= 0)
    # Little: requests in the system over time, integrated, are the stays' sum
    at = np.sort(np.concatenate([one.work.arrival_s, one.finish_s]))
    inside = np.searchsorted(one.work.arrival_s, at[:-1], "right") - np.searchsorted(np.sort(one.finish_s), at[:-1], "right")
    assert float(np.sum(inside * np.diff(at))) == pytest.approx(float(np.sum(one.finish_s - one.work.arrival_s)))
    if clients:
        assert inside.max() <= clients


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        (Deployment(plan=PLAN, n_replicas=9), "the deployment needs 9 GPUs, h100-sxm has 8; drop replicas or add GPUs"),
        (Deployment(plan=PLAN, n_prefill=1, prefill=EnginePlan(kv_dtype="fp8")), "prefill caches KV as fp8, decode as bf16"),
        (Deployment(plan=PLAN, n_replicas=2, router="best"), "router='best' is not known"),
    ],
)
def test_deployments_that_cannot_be(deployment, message):
    with pytest.raises(BadInput, match=message):
        simulate_deployment(MODEL, NODE, deployment, chat(5))
