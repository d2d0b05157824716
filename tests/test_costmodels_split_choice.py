"""The split of nodes between attention and FFN: orders that must hold whatever the prices."""

from __future__ import annotations

import pytest
from roofplan.costmodels.serving_ops import serve_system
from roofplan.costmodels.split_choice import best_batch, choose_split
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, serving_engine

MODEL = registry.model("deepseek-v3")
PLAN = EnginePlan(weight_dtype="fp8_block", kv_dtype="bf16")


def test_best_comes_first_and_is_one_of_those_asked_for_alone() -> None:
    system = serve_system(registry.cluster("h800", 32), serving_engine("sglang"))
    found = choose_split(MODEL, PLAN, system, 4096, 0.1)
    rates = [c.tokens_per_s_per_gpu for c in found]
    assert rates == sorted(rates, reverse=True)
    assert {c.n_attention + c.n_ffn for c in found} == {4}
    alone = choose_split(MODEL, PLAN, system, 4096, 0.1, n_attention_nodes=found[0].n_attention)
    assert alone[0] == found[0]
    assert all(c.tpot_s <= 0.1 for c in found)
    assert all(c.plan.n_gpus == 32 for c in found)
    with pytest.raises(BadInput, match="n_attention_nodes=4 of 4 nodes: the FFN needs at least one"):
        choose_split(MODEL, PLAN, system, 4096, 0.1, n_attention_nodes=4)


def test_longer_context_wants_more_attention() -> None:
    system = serve_system(registry.cluster("h800", 32), serving_engine("sglang"))
    short, long = (choose_split(MODEL, PLAN, system, context, 0.15)[0] for context in (1024, 65536))
    assert long.n_attention >= short.n_attention
    assert long.batch < short.batch


def test_a_batch_grows_with_the_time_allowed() -> None:
    system = serve_system(registry.cluster("h800", 32), serving_engine("sglang"))
    plan = choose_split(MODEL, PLAN, system, 4096, 0.1)[0].plan
    batches = [best_batch(MODEL, plan, system, 4096, t)[0] for t in (0.03, 0.06, 0.1)]
    assert batches == sorted(batches)
    n, took = best_batch(MODEL, plan, system, 4096, 0.1, batch=batches[-1])
    assert n == batches[-1]
    assert took <= 0.1 * 1.01
