"""Experts of a serving step: what routing touches, which kernel multiplies them, and what their messages cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.serving_ops import ServeSystem, messages_s, moe_s, own_experts_s, serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, serving_engine


def system_of(gpu: str, n: int = 8, engine: str = "vllm") -> ServeSystem:
    return serve_system(registry.cluster(gpu, n), serving_engine(engine))


def test_small_batches_touch_the_experts_random_routing_does():
    """H100, 128 experts of 1,536, top 8, tp 8, 16 tokens: 147 us measured under random-like routing, 235 us dealt out in turn."""
    model, system = registry.model("qwen3-235b-a22b"), system_of("h100-sxm")
    t = np.array([16.0])
    price = (own_experts_s(model, EnginePlan(tp=8), system, t) + moe_s(model, EnginePlan(tp=8), system, t))[0]
    assert 1.3e-4 < price < 1.9e-4


def test_experts_asked_of_another_kernel_are_multiplied_at_its_rate():
    """gpt-oss-120b on an H200: Marlin, measured on other shapes, reaches 28 % of peak, so 8,192 tokens take 6 ms a layer, not 2.7.

    ``6·tokens·4·2880² / (989.5e12 · 0.276)``. Small steps read the same weights and cost the same; a card without such a kernel too.
    """
    model, plan = registry.model("gpt-oss-120b"), EnginePlan(expert_dtype="mxfp4")
    t = np.array([16.0, 8192.0])
    for gpu, marlin_s in (("h200", 5.97e-3), ("a100-80gb-sxm", 0.0)):
        system = system_of(gpu)
        own = moe_s(model, plan, system, t)
        asked = moe_s(model, plan, replace(system, engine=replace(system.engine, expert_kernel="marlin")), t)
        assert asked[0] == own[0]
        assert asked[1] == pytest.approx(max(own[1], marlin_s), rel=0.01)
    assert own[1] > 0


def test_compiled_engines_multiply_8_bit_experts_faster_than_the_measured_layer():
    """Mixtral on two H100, 16,384 tokens: the measured 8-bit layer takes 9.5 ms, its 16-bit one 8.9 ms; its FLOPs at peak 2.9 ms."""
    model, plan, t = registry.model("mixtral-8x7b"), EnginePlan(tp=2, weight_dtype="fp8"), np.array([16384.0])
    layer, grouped = (float(moe_s(model, plan, system_of("h100-sxm", engine=e), t)[0]) for e in ("vllm", "trtllm-0.15"))
    assert layer == pytest.approx(9.5e-3, rel=0.1)
    assert 2.9e-3 < grouped < 0.7 * layer


def test_copies_of_one_sequence_read_the_experts_of_one():
    """Mixtral, decode batches on four A100: 16 copies read two of eight experts, 16 sequences of their own nearly all (0.99 of them)."""
    model, plan = registry.model("mixtral-8x7b"), EnginePlan(tp=4)
    system, t = system_of("a100-80gb-sxm", engine="trtllm-0.15"), np.array([1.0, 16.0])
    copies, own = (moe_s(model, replace(plan, alike=alike), system, t) for alike in (True, False))
    assert copies[1] < 1.1 * copies[0]
    assert copies[0] == pytest.approx(own[0], rel=0.15)
    assert own[1] > 2.5 * copies[1]
    weights = 2 * 3 * model.hidden * model.moe_ffn_hidden / 4 * 2
    assert copies[1] > weights / 2.039e12


@pytest.mark.parametrize("ranks", [8, 16, 32, 64])
def test_wide_expert_parallelism_stays_over_its_floors(ranks):
    """Experts of a rank that sees its own rows: their FLOPs, their weights once all are touched; messages: a row to each of 8 experts."""
    model, system = registry.model("deepseek-v3"), serve_system(registry.cluster("gb200", 72), serving_engine("sglang"))
    plan = EnginePlan(dp=ranks, ep=ranks, weight_dtype="fp8_block", redundant_experts=ranks, all_to_all=True)
    t = np.array([256.0, 2048.0]) * ranks
    price = moe_s(model, plan, system, t)
    gpu = system.accelerator
    flops = 6 * t * 8 / ranks * 7168 * 2048 / gpu.peak_flops_per_s("fp8")
    weights = 3 * (256 / ranks) * 7168 * 2048 / gpu.hbm_bytes_per_s
    assert np.all(price >= np.maximum(flops, weights))
    sent = t / ranks * 8 * 7168 * 3 * (ranks - 1) / ranks / system.network.intra.bytes_per_s
    assert np.all(messages_s(model, plan, system, t / ranks, True) >= sent)


def test_experts_of_4_bits_gather_what_is_quantised_already():
    """8 ranks of 2,048 tokens: the way there takes 4.5 bits an element, not 16; the way back is the same."""
    model, system, t = registry.model("deepseek-v3"), system_of("b200"), np.array([2048.0])
    four, eight = (messages_s(model, EnginePlan(dp=8, ep=8, expert_dtype=d), system, t, True)[0] for d in ("nvfp4", "fp8_block"))
    n_bytes = 8 * 2048 * 7168
    gather = system.network.all_gather_s
    assert eight - four == pytest.approx(float(gather(2.0 * n_bytes, 8, 1) - gather(0.5625 * n_bytes, 8, 1)))
    assert four < eight


def test_all_to_all_may_be_asked_for_where_ranks_would_gather():
    """Eight ranks gather unless told otherwise; more never do."""
    model, system = registry.model("deepseek-v3"), serve_system(registry.cluster("gb200", 72), serving_engine("sglang"))
    t = np.array([65536.0])
    for ranks, differ in ((8, True), (16, False)):
        plan = EnginePlan(dp=ranks, ep=ranks, weight_dtype="fp8_block")
        asked = replace(plan, all_to_all=True)
        gathered, own = (moe_s(model, p, system, t)[0] for p in (plan, asked))
        messages = [messages_s(model, p, system, t / ranks, True)[0] for p in (plan, asked)]
        assert bool(gathered > 1.5 * own) is differ
        assert bool(messages[0] != messages[1]) is differ
