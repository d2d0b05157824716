"""What a launch asks for: products made for few tokens, kernels for experts, and how prompts reach the experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.serving import Reach, step_times
from roofplan.costmodels.serving_ops import FEW_TOKENS_FRAC, gemm_s, messages_s, moe_s, serve_system, tp_all_reduce_s
from roofplan.costmodels.step_times import PS
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, serving_engine

DEEPSEEK = registry.model("deepseek-v3")
EIGHT_BITS = EnginePlan(dp=8, weight_dtype="fp8_block", kv_dtype="fp8", engine="sglang")


def system_of(gpu: str, **changes):
    return serve_system(registry.cluster(gpu, 8), replace(serving_engine("sglang"), **changes))


def test_products_made_for_few_tokens_are_slow_on_many():
    """7,400 tokens through 7168 x 2048 take 1.6 ms on a B200, ``2·m·n·k/(0.03·4.5e15)``, and 0.1 ms by DeepGEMM; one token the same."""
    few, usual = system_of("b200", few_token_products=True), system_of("b200")
    m = np.array([1.0, 7400.0])
    slow, fast = (gemm_s(system, m, 7168.0, 2048.0, "fp8_block") for system in (few, usual))
    assert slow[0] == fast[0]
    assert slow[1] == pytest.approx(2 * 7400 * 7168 * 2048 / (4.5e15 * FEW_TOKENS_FRAC))
    assert slow[1] > 8 * fast[1]
    for dtype in ("bf16", "fp8", "nvfp4"):
        assert np.array_equal(gemm_s(few, m, 7168.0, 2048.0, dtype), gemm_s(usual, m, 7168.0, 2048.0, dtype))


def test_large_steps_take_what_the_asked_kernel_measured():
    """DeepSeek's 4-bit experts over four B200: CUTLASS takes 2.6 times as long as the fastest in large steps, no longer in small ones."""
    plan = EnginePlan(dp=4, ep=4, expert_dtype="nvfp4", engine="sglang")
    usual, asked = system_of("b200"), system_of("b200", expert_kernel="cutlass")
    t = np.array([64.0, 32768.0])
    own, cutlass = (moe_s(DEEPSEEK, plan, system, t) for system in (usual, asked))
    layer = {"hidden": 7168, "inter": 2048, "topk": 8, "n_experts": 256, "tp": 1, "ep": 4, "routing": "power_law_1.01", "dtype": "nvfp4"}
    assert cutlass[0] == own[0]
    assert cutlass[1] == pytest.approx(asked.roofline.moe_layer_s(t, **layer, kernel="cutlass_flashinfer")[1], rel=0.02)
    assert cutlass[1] == pytest.approx(2.65 * own[1], rel=0.05)


def test_groups_that_measurement_filled_first_cost_no_more_than_the_fullest_rank():
    """16,384 tokens on 8 H200: DeepSeek's first rank was measured at 7.0 ms, an eighth of each expert takes 4.8; Zipf 1.01 fills one
    rank 1.9 times. Kimi chooses of all experts: its measured layer stands.
    """
    t, system = np.array([16384.0]), system_of("h200")
    plan = EnginePlan(tp=8, ep=8, weight_dtype="fp8_block", engine="sglang")
    spread, whole = (moe_s(DEEPSEEK, replace(plan, ep=ep), system, t)[0] for ep in (1, 8))
    assert spread == pytest.approx(4.8e-3, rel=0.1)
    assert spread < whole < 6.4e-3
    kimi = {"hidden": 7168, "inter": 2048, "topk": 8, "n_experts": 384, "ep": 8, "routing": "power_law_1.01", "dtype": "fp8_block"}
    assert moe_s(registry.model("kimi-k2"), plan, system, t) == system.roofline.moe_layer_s(t, **kimi)


def test_prompts_are_summed_over_all_ranks_and_decodes_gathered():
    """59,200 tokens of eight ranks: two all-reduces of 0.85 GB and a pass that clears as much; 4-bit rows for CUTLASS are gathered."""
    system, t = system_of("b200"), np.array([7400.0])
    rows = 2.0 * 7168 * 8 * t
    summed = messages_s(DEEPSEEK, EIGHT_BITS, system, t, True, prompts=True)
    assert summed == pytest.approx(2 * tp_all_reduce_s(system, rows, 8) + system.roofline.stream_s(rows))
    gathered = messages_s(DEEPSEEK, EIGHT_BITS, system, t, True)
    assert 1.4 * gathered < summed < 2.5 * gathered
    four_bits = replace(EIGHT_BITS, ep=8, expert_dtype="nvfp4")
    cutlass = system_of("b200", expert_kernel="cutlass")
    assert messages_s(DEEPSEEK, four_bits, cutlass, t, True, prompts=True) == messages_s(DEEPSEEK, four_bits, cutlass, t, True)
    all_to_all = replace(EIGHT_BITS, ep=8, all_to_all=True)
    assert messages_s(DEEPSEEK, all_to_all, system, t, True, prompts=True) == messages_s(DEEPSEEK, all_to_all, system, t, True)


def test_only_steps_too_large_for_a_graph_are_summed():
    """Decode steps replay graphs and cost the same; one of 16,384 tokens over eight ranks is longer by its layers' messages."""
    reach = Reach(tokens=16384, chunk=2048, seqs=64)
    summed, gathered = (step_times(DEEPSEEK, EIGHT_BITS, system_of("b200", sums_prompts=sums), reach).linear for sums in (True, False))
    assert summed[:65] == gathered[:65]
    t = np.array([2048.0])
    on, off = (messages_s(DEEPSEEK, EIGHT_BITS, system_of("b200"), t, True, prompts=prompts)[0] for prompts in (True, False))
    more = DEEPSEEK.n_moe_layers * (on - off) * serving_engine("sglang").kernel_frac
    assert (summed[16384] - gathered[16384]) / PS == pytest.approx(more, rel=1e-6)
