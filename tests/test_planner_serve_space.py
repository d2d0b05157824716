"""The space of serving layouts: which rules turn a layout away, and what is tried of the others."""

from __future__ import annotations

import dataclasses

import pytest
from roofplan.planner.serve_ask import RopeScaling
from roofplan.planner.serve_space import (
    broken_rule,
    budgets,
    describe,
    formats,
    host_tier,
    one_pair,
    options,
    parallel,
    prefill_budget,
)  # fmt: skip
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import Speculation
from serve_asks import ask, trace


def legal(question) -> list[EnginePlan]:
    return [plan for plan, rule in parallel(question) if not rule]


@pytest.mark.parametrize(
    ("changes", "plan", "sentence"),
    [
        ({"n_gpus": 8}, {"tp": 3}, "tp=3 does not divide n_heads=32 of llama3.1-8b"),
        ({"n_gpus": 8, "model_name": "qwen2.5-7b"}, {"tp": 7}, "tp=7 neither divides n_kv_heads=4 of qwen2.5-7b nor is a multiple of it"),
        ({"n_gpus": 8}, {"pp": 64}, "pp=64 is more than the n_layers=32 of llama3.1-8b"),
        ({"n_gpus": 8}, {"tp": 2, "pp": 2}, "pp=2 makes stages inside a node with NVLink: wider tp"),
        ({"n_gpus": 16, "gpu_name": "l40s"}, {"tp": 4, "pp": 3}, "a replica of 12 GPUs neither divides a node of 8 nor fills whole nodes"),
        ({"n_gpus": 64, "model_name": "qwen3.5-397b-a17b"}, {"tp": 32}, "tp=32 does not divide linear_key_heads=16 of qwen3.5-397b-a17b"),
        ({"n_gpus": 8, "model_name": "mixtral-8x7b"}, {"tp": 4, "dp": 4, "ep": 16}, "ep=16 does not divide n_experts=8 of mixtral-8x7b"),
    ],
)
def test_rules_and_their_sentences(changes, plan, sentence):
    assert broken_rule(ask(**changes), EnginePlan(**plan)).startswith(sentence)


def test_a_dense_model_inside_a_node_is_laid_out_by_tp_alone():
    assert {(p.tp, p.pp, p.dp, p.cp) for p in legal(ask(n_gpus=8))} == {(1, 1, 1, 1), (2, 1, 1, 1), (4, 1, 1, 1), (8, 1, 1, 1)}


def test_pipelines_cross_nodes_or_join_gpus_without_nvlink():
    across = {(p.tp, p.pp) for p in legal(ask(n_gpus=16, model_name="llama3.1-70b")) if p.pp > 1}
    assert (8, 2) in across
    assert across == {(8, 2)}
    assert (2, 2) in {(p.tp, p.pp) for p in legal(ask(gpu_name="l40s", n_gpus=4))}


def test_experts_bring_attention_data_parallelism_and_expert_parallelism():
    found = {(p.tp, p.dp, p.ep) for p in legal(ask(n_gpus=8, model_name="mixtral-8x7b"))}
    assert {(8, 1, 1), (8, 1, 8), (4, 2, 8), (1, 8, 8), (2, 4, 1)} <= found
    assert all(ep in (1, tp * dp) for tp, dp, ep in found)


def test_long_prompts_bring_context_parallelism_and_wider_steps():
    long = ask(n_gpus=8, prompt_tokens=1 << 20, output_tokens=1024, rope=RopeScaling(kind="yarn", factor=9))
    assert {(1, 8), (2, 4), (4, 2), (8, 1)} <= {(p.tp, p.cp) for p in legal(long)}
    assert all(p.cp == 1 for p in legal(ask(n_gpus=8)))
    assert prefill_budget(long, 1) == max(budgets(long, 1)) > max(budgets(ask(), 1))
    assert budgets(ask(), 4) == tuple(4 * b for b in budgets(ask(), 1))


def test_low_precision_is_used_only_when_allowed_and_as_the_card_can():
    plain = ("bf16", "", "bf16")
    assert formats(ask()) == [plain]
    assert formats(ask(allow_quant=True)) == [plain, ("fp8", "", "bf16"), ("fp8", "", "fp8")]
    assert formats(ask(allow_quant=True, gpu_name="a100-80gb-sxm")) == [plain, ("int4", "", "bf16")]
    assert ("nvfp4", "", "fp8") in formats(ask(allow_quant=True, gpu_name="b200"))


def test_a_checkpoint_is_served_in_its_own_format():
    assert formats(ask(model_name="deepseek-v3")) == [("fp8_block", "", "bf16")]
    assert formats(ask(model_name="gpt-oss-120b"))[0][1] == "mxfp4"
    assert ("fp8_block", "", "fp8") in formats(ask(model_name="mixtral-8x7b", allow_quant=True))


def test_pools_of_one_group_hold_equal_numbers_and_both_draft_or_neither():
    one = EnginePlan(tp=2, weight_dtype="fp8", kv_dtype="fp8")
    assert one_pair(one, dataclasses.replace(one, tp=4, expert_dtype="fp8"))
    assert not one_pair(one, dataclasses.replace(one, kv_dtype="bf16"))
    assert not one_pair(one, dataclasses.replace(one, expert_dtype="mxfp4"))
    guess = dataclasses.replace(one, speculation=Speculation(method="chain", draft_tokens=3, accept_frac=0.7))
    assert not one_pair(one, guess)
    assert one_pair(guess, dataclasses.replace(guess, tp=4))


def test_hashes_turn_the_prefix_cache_on_and_offer_host_memory():
    found = list(options(ask(trace=trace()), EnginePlan(tp=2)))
    assert [p.prefix_cache for p in found] == [True, True]
    assert [len(p.kv_tiers) for p in found] == [0, 1]
    question = ask()
    tier = host_tier(question, EnginePlan(tp=2))
    assert tier is not None
    assert tier.capacity_bytes == pytest.approx(0.5 * question.cluster.host_ram_bytes / 2 * 2)
    bare = dataclasses.replace(question, cluster=dataclasses.replace(question.cluster, host_ram_bytes=0.0))
    assert host_tier(bare, EnginePlan()) is None


def test_speculation_is_tried_beside_plain_decoding_only_when_given():
    given = Speculation(method="chain", draft_tokens=1, accept_frac=0.85)
    assert [p.speculation for p in options(ask(speculation=given), EnginePlan())] == [None, given]
    assert [p.speculation for p in options(ask(), EnginePlan())] == [None]


def test_a_layout_in_words():
    plan = EnginePlan(tp=2, pp=2, weight_dtype="fp8", kv_dtype="fp8", token_budget=512, max_num_seqs=1024)
    assert describe(plan) == "tp=2 pp=2 fp8/fp8 KV budget 512 1024 seats"
    assert describe(EnginePlan(speculation=Speculation())) == "tp=1 bf16 chain speculation to γ=3"


def test_uneven_experts_are_tried_with_copies():
    skewed = ask(n_gpus=8, model_name="mixtral-8x7b", expert_skew=0.8)
    assert {p.redundant_experts for p in options(skewed, EnginePlan(tp=8, ep=8, expert_skew=0.8))} == {0, 8}
    assert {p.redundant_experts for p in options(ask(n_gpus=8, model_name="mixtral-8x7b"), EnginePlan(tp=8, ep=8))} == {0}
    assert all(p.expert_skew == 0.8 for p in legal(skewed))


def test_models_with_states_run_without_what_states_do_not_allow():
    """No context parallelism, prefix cache or host tier; sparse attention only lacks the first."""
    for name, caches in (("qwen3.5-397b-a17b", {False}), ("glm-5", {True})):
        question = ask(n_gpus=16, gpu_name="h200", model_name=name, trace=trace(), allow_quant=True)
        plans = [plan for degrees in legal(question) for plan in options(question, degrees)]
        assert {plan.cp for plan in plans} == {1}
        assert {plan.prefix_cache for plan in plans} == caches
        assert any(plan.kv_tiers for plan in plans) == (caches == {True})
