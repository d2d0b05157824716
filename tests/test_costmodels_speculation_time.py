"""Steps that check guesses: they cost what their tokens cost, read the cache once, and stop paying where the card is full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.acceptance import chain_tokens
from roofplan.costmodels.params import count_params
from roofplan.costmodels.serving import Reach, step_times
from roofplan.costmodels.serving_attention import states_decode_s
from roofplan.costmodels.serving_memory import serve_memory
from roofplan.costmodels.serving_ops import head_s, serve_system
from roofplan.costmodels.speculation_time import (
    KEEP_FRAC,
    VerifyTimes,
    depth_acceptance,
    gamma_table,
    memory_with_draft,
    query_tokens,
    verify_times,
)
from roofplan.costmodels.step_times import PS
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput, UnknownName
from roofplan.scenarios.serving import EnginePlan, serving_engine
from roofplan.scenarios.serving_parts import AttentionFfnSplit, Speculation

REACH = Reach(tokens=3584, chunk=3072, seqs=512, kv_low_tokens=512, kv_high_tokens=4096)
CHAIN = Speculation(draft_tokens=5, accept_frac=0.75)


def tables(speculation: Speculation, model: str = "llama3-8b", gpu: str = "h100-sxm", reach: Reach = REACH, **layout) -> VerifyTimes:
    spec, plan = registry.model(model), EnginePlan(speculation=speculation, **layout)
    system = serve_system(registry.cluster(gpu, max(plan.n_gpus, 8)), serving_engine(plan.engine))
    return verify_times(spec, plan, system, reach, step_times(spec, plan, system, reach))


@pytest.fixture(scope="module")
def chain() -> VerifyTimes:
    return tables(CHAIN)


def test_without_guesses_a_step_is_the_plain_one(chain):
    assert chain.fixed[0] == chain.times.decode
    assert chain.per_kv[0] == chain.times.decode_slope
    for n in (1, 7, 128):
        assert chain.step_ps(n, 0, 1000 * n, []) == chain.times.step_ps(n, 1000 * n, [])
    plain = chain.times.step_ps(3, 3000, [(100, 50)])
    assert chain.step_ps(3, 0, 3000, [(100, 50)]) == plain


def test_a_prompt_also_passes_through_the_draft():
    one, two = tables(replace(CHAIN, draft_frac=0.0)).times, tables(replace(CHAIN, draft_frac=0.1)).times
    bare, drafted = one.step_ps(0, 0, [(512, 1024)]) - one.decode[0], two.step_ps(0, 0, [(512, 1024)]) - two.decode[0]
    assert drafted == pytest.approx(1.1 * bare, rel=1e-6)


@pytest.mark.parametrize("n", [1, 16, 128, 400])
def test_more_guesses_cost_more_and_never_beat_the_card(chain, n):
    """``2·P·n·(γ+1)`` FLOPs at the peak, weights and caches once over HBM."""
    model, card = registry.model("llama3-8b"), registry.accelerator("h100-sxm")
    weights = count_params(model).total - count_params(model).embedding
    steps = [chain.step_ps(n, g, n * (1024 + g + 1), []) / PS for g in range(6)]
    assert steps == sorted(steps)
    for g, step in enumerate(steps):
        assert step > 2 * weights * n * (g + 1) / card.bf16_flops_per_s
        assert step > (2 * weights + n * 1024 * 131072) / card.hbm_bytes_per_s


def test_the_cache_is_read_once_for_all_guesses():
    """Four tokens a sequence ask as four times the heads of a group do: 16 rows fill one tile. Reading it for each would take 4 times."""
    free = tables(replace(CHAIN, draft_frac=0.0))
    assert free.per_kv[0][64] <= free.per_kv[3][64] < 1.25 * free.per_kv[0][64]


def test_latent_attention_pays_for_guesses():
    """MLA's 128 heads share one cache and fill the card's arithmetic already: three tokens more cost over a half more."""
    free = tables(Speculation(draft_tokens=3, draft_frac=0.0), "deepseek-v3", "h200", tp=1, dp=32, ep=32, weight_dtype="fp8")
    assert free.per_kv[3][256] > 1.5 * free.per_kv[0][256]


def test_drafting_costs_its_share_of_a_step(chain):
    free = tables(replace(CHAIN, draft_frac=0.0))
    n, kv = 32, 32 * 1024
    extra = chain.step_ps(n, 3, kv, []) - free.step_ps(n, 3, kv, [])
    assert extra == pytest.approx(3 * CHAIN.draft_frac * chain.times.step_ps(n, kv, []), rel=1e-4)


def test_a_named_draft_costs_its_own_passes():
    """A 1B draft reads 1.24 of 8.03 B parameters a pass: dearer than 5 % of a step, cheaper than a third."""
    own = tables(replace(CHAIN, draft_model="llama3.2-1b"))
    free = tables(replace(CHAIN, draft_frac=0.0))
    n, kv = 8, 8 * 1024
    a_pass = (own.step_ps(n, 4, kv, []) - free.step_ps(n, 4, kv, [])) / 4
    assert 0.05 * free.step_ps(n, 0, kv, []) < a_pass < 0.35 * free.step_ps(n, 0, kv, [])
    assert a_pass / PS > 2 * 1.23e9 / registry.accelerator("h100-sxm").hbm_bytes_per_s


def test_a_tree_checks_all_its_candidates():
    tree = Speculation(method="tree", draft_tokens=3, tree_width=4, accept_frac=0.6)
    assert query_tokens(tree, 3) == 13
    assert query_tokens(replace(tree, method="chain"), 3) == 4
    assert float(depth_acceptance(tree, 0.6)) == pytest.approx(1 - 0.4**4)
    assert tables(tree).step_ps(16, 3, 16384, []) > tables(replace(tree, method="chain")).step_ps(16, 3, 16384, [])


def test_gamma_falls_with_the_batch_and_matches_brute_force(chain):
    rows = gamma_table(chain, CHAIN, 512, 1024.0)
    assert rows[0][1] == 5
    assert rows[-1] == (512, rows[-1][1])
    assert rows[-1][1] < 5
    assert [b for b, _ in rows] == sorted({b for b, _ in rows})
    for n in (1, 20, 63, 130, 300, 512):
        gamma = next(g for b, g in rows if n <= b)
        rate = [chain_tokens(0.75, g) / chain.step_ps(n, g, int(n * (1024 + g + 1)), []) for g in range(6)]
        assert rate[gamma] >= (1 - 1.01 * KEEP_FRAC) * max(rate)


def test_poor_guesses_are_not_made_at_high_batch():
    poor = replace(CHAIN, accept_frac=0.3, draft_frac=0.1)
    rows = gamma_table(tables(poor), poor, 512, 1024.0)
    assert rows[-1][1] == 0
    assert rows[0][1] >= 1


def test_batches_past_the_tables_are_not_speculated_for():
    short = Reach(tokens=600, chunk=88, seqs=512)
    rows = gamma_table(tables(CHAIN, reach=short), CHAIN, 512, 512.0)
    assert rows[-1] == (512, 0)


def test_crossover_of_the_catalogue():
    """Llama-3-8B on an H100, 1K context, α = 0.75, c = 0.05, γ = 3: 2.38x up to batch 96, falling past it (a roofline without launches)."""
    v = tables(replace(CHAIN, draft_tokens=3))
    gain = {n: chain_tokens(0.75, 3) * v.step_ps(n, 0, n * 1025, []) / v.step_ps(n, 3, n * 1028, []) for n in (1, 8, 32, 128, 256, 512)}
    assert gain[8] == pytest.approx(2.38, rel=0.1)
    assert gain[32] == pytest.approx(2.38, rel=0.1)
    assert gain[128] < 0.9 * 2.38
    assert gain[32] > gain[128] > 0.98 * gain[256] > 0.96 * gain[512]


def test_mtp_of_deepseek_v3():
    """One extra token accepted 80 to 90 % of the time: 1.8 times the tokens a second, where weights are what a step reads."""
    accept = 0.85
    mtp = Speculation(method="mtp", draft_tokens=1, accept_frac=accept, draft_frac=1 / 61)
    reach = Reach(tokens=4096, chunk=2048, seqs=1024, kv_low_tokens=512, kv_high_tokens=4096)
    v = tables(mtp, "deepseek-v3", "h800", reach, dp=128, ep=128, weight_dtype="fp8")
    gain = (1 + accept) * v.step_ps(128, 0, 128 * 4096, []) / v.step_ps(128, 1, 128 * 4097, [])
    assert gain == pytest.approx(1.8, rel=0.05)


def test_guesses_on_recurrent_states_pay_a_state_each():
    """Qwen3.5 on 8 H200, 64 sequences, one guess: the third state of a sequence, its head and projections; no more a cached token."""
    verify = tables(Speculation(method="mtp", draft_tokens=1, draft_frac=0), "qwen3.5-397b-a17b", "h200", tp=8, weight_dtype="fp8_block")
    spec, plan = registry.model("qwen3.5-397b-a17b"), EnginePlan(tp=8, weight_dtype="fp8_block")
    system = serve_system(registry.cluster("h200", 8), serving_engine("vllm"))
    n = np.array([64.0])
    states = (states_decode_s(spec, plan, system.roofline, n, 2) - states_decode_s(spec, plan, system.roofline, n))[0]
    heads = (head_s(spec, plan, system, 2 * n) - head_s(spec, plan, system, n))[0]
    more = (verify.fixed[1][64] - verify.fixed[0][64]) / PS
    assert more == pytest.approx(states + heads, rel=0.1)


def test_graphs_for_decoding_hold_guesses_too():
    """SGLang replays a graph of 64 sequences of four tokens; those 256 tokens with a prompt among them launch their kernels one by one."""
    v = tables(Speculation(draft_tokens=3, draft_frac=0.0), "qwen2.5-0.5b", engine="sglang", reach=replace(REACH, seqs=128))
    assert v.layers[0] == v.times.linear[:129]
    assert v.layers[3][64] < 0.8 * v.times.linear[256]
    assert [row[64] for row in v.layers] == sorted(row[64] for row in v.layers)
    vllm = tables(Speculation(draft_tokens=3), "qwen2.5-0.5b", reach=replace(REACH, seqs=128))
    assert vllm.layers[3][64] == vllm.times.linear[256]


def test_a_draft_model_shrinks_the_pool():
    model, engine, card = registry.model("llama3-8b"), serving_engine("vllm"), registry.accelerator("a100-80gb-sxm")
    plan = EnginePlan(speculation=replace(CHAIN, draft_model="llama3.2-1b"))
    alone = serve_memory(model, plan, engine, card, 2048, 256, 16)
    both = memory_with_draft(alone, plan, 16)
    assert both.weights_bytes - alone.weights_bytes == pytest.approx(2 * 1.24e9, rel=0.02)
    assert both.kv_bytes_per_token == alone.kv_bytes_per_token + 2 * 16 * 8 * 64 * 2
    assert both.kv_blocks * 16 * both.kv_bytes_per_token <= alone.kv_bytes - 2 * 1.23e9
    assert both.kv_blocks < alone.kv_blocks
    assert memory_with_draft(alone, EnginePlan(speculation=CHAIN), 16) is alone
    assert memory_with_draft(alone, replace(plan, kv_blocks=77), 16).kv_blocks == 77
    hybrid = EnginePlan(speculation=replace(CHAIN, draft_model="qwen3-next-80b-a3b"))
    with pytest.raises(BadInput, match="qwen3-next-80b-a3b has gated-delta layers, whose caches are not counted beside a model's"):
        memory_with_draft(alone, hybrid, 16)


def test_what_cannot_be_priced_is_refused():
    model = registry.model("llama3-8b")
    system = serve_system(registry.cluster("a100-80gb-sxm", 8), serving_engine("vllm"))
    times = step_times(model, EnginePlan(), system, REACH)
    with pytest.raises(BadInput, match="no speculation to price"):
        verify_times(model, EnginePlan(), system, REACH, times)
    with pytest.raises(UnknownName, match="llama-99"):
        verify_times(model, EnginePlan(speculation=replace(CHAIN, draft_model="llama-99")), system, REACH, times)
    split = EnginePlan(speculation=CHAIN, attention_ffn=AttentionFfnSplit(n_ffn_gpus=1))
    with pytest.raises(BadInput, match="not priced with attention apart from FFN"):
        verify_times(model, split, system, REACH, object())
    memory = serve_memory(model, EnginePlan(), serving_engine("vllm"), registry.accelerator("a100-80gb-sxm"), 2048, 256, 16)
    with pytest.raises(BadInput, match=r"draft_model=llama3.1-70b needs 131.* GiB beside the model .* no room"):
        memory_with_draft(memory, EnginePlan(speculation=replace(CHAIN, draft_model="llama3.1-70b")), 16)
