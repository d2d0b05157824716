"""Context parallel serving: equal shares of queries and cache, messages that hide, and nothing changed at cp = 1."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels import serving_attention
from roofplan.costmodels.serving import Reach, step_times
from roofplan.costmodels.serving_context import decode_attention_s, prefill_attention_s, spread
from roofplan.costmodels.serving_memory import kv_bytes_per_token, serve_memory
from roofplan.costmodels.serving_ops import ServeSystem, serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, serving_engine
from roofplan.sim.serving import simulate_serving

LLAMA = registry.model("llama3.1-8b")
ONE = EnginePlan()


def system(gpus: int = 8, per_node: int | None = None) -> ServeSystem:
    return serve_system(registry.cluster("h100-sxm", gpus, per_node), serving_engine("vllm"))


def cp(n: int, **more: object) -> EnginePlan:
    return EnginePlan(cp=n, **more)  # type: ignore[arg-type]


def test_one_rank_prices_as_plain_attention() -> None:
    s, chunk = system(), np.array([1.0, 64.0, 4096.0])
    assert np.array_equal(prefill_attention_s(LLAMA, ONE, s, chunk, 9e4), serving_attention.prefill_attention_s(LLAMA, ONE, s, chunk, 9e4))
    assert np.array_equal(decode_attention_s(LLAMA, ONE, s, chunk, 9e4), serving_attention.decode_attention_s(LLAMA, ONE, s, chunk, 9e4))
    assert spread(ONE) is ONE


def test_long_prefill_splits_evenly_and_never_better() -> None:
    """A 64K chunk after a million tokens: 8 ranks take an eighth plus what does not hide, under a tenth more."""
    s, chunk = system(), np.array([65536.0])
    alone = prefill_attention_s(LLAMA, ONE, s, chunk, 1e6)[0]
    for n in (2, 4, 8):
        shared = prefill_attention_s(LLAMA, cp(n), s, chunk, 1e6)[0]
        assert alone / n * 0.97 < shared < alone / n * 1.15


def test_pairs_of_all_ranks_are_the_causal_ones() -> None:
    """The kernel call priced for a rank asks 1/cp of the queries and 1/cp of the causal pairs."""
    chunk, past, n = 4096.0, 10_000.0, 8
    q = chunk / n
    kv = past + chunk / 2 - q / 2 + q
    assert n * q * (kv - q / 2) == pytest.approx(chunk * past + chunk**2 / 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([2, 4, 8]), tp=st.sampled_from([1, 2]), chunk=st.integers(8, 65536), past=st.integers(0, 10**6),
    name=st.sampled_from(["llama3.1-8b", "deepseek-v2-lite", "gemma2-9b", "qwen3-30b-a3b"]),
)  # fmt: skip
def test_never_under_an_nth_of_the_floor(n: int, tp: int, chunk: int, past: int, name: str) -> None:
    """No rank beats the FLOPs of its share of full-attention pairs at the card's peak."""
    model, s = registry.model(name), system(16, 8)
    plan = cp(n, tp=tp)
    got = prefill_attention_s(model, plan, s, np.array([float(chunk)]), float(past))[0]
    pairs = (chunk * past + chunk**2 / 2) / n
    flops = 2 * model.n_full_attention_layers * model.n_heads / tp * pairs * (model.qk_dim + model.v_dim)
    assert got >= 0.999 * flops / s.accelerator.peak_flops_per_s("bf16") - 2e-5 * model.n_layers
    few = decode_attention_s(model, plan, s, np.array([4.0]), float(past + 2))[0]
    read = 4 * model.n_full_attention_layers * (past / n) * kv_bytes_per_token(model, ONE) / model.n_layers / tp
    if not model.is_mla:
        assert few >= 0.9 * read / s.accelerator.hbm_bytes_per_s


def test_decode_reads_a_share_and_pays_messages() -> None:
    s, seqs = system(), np.array([4.0, 16.0])
    alone = decode_attention_s(LLAMA, ONE, s, seqs, 1e6)
    shared = decode_attention_s(LLAMA, cp(8), s, seqs, 1e6)
    eighth = serving_attention.decode_attention_s(LLAMA, ONE, s, seqs, 1e6 / 8)
    assert np.all(shared > eighth)
    assert np.all(shared < alone)
    short = decode_attention_s(LLAMA, cp(8), s, seqs, 64.0)
    assert np.all(short > decode_attention_s(LLAMA, ONE, s, seqs, 64.0)), "messages cost more than short caches save"
    one = decode_attention_s(LLAMA, cp(8), s, seqs, 1.0)
    assert np.array_equal(one, serving_attention.decode_attention_s(LLAMA, ONE, s, seqs, 1.0)), "one token sits on one rank"


def test_queries_travel_when_keys_would_be_more() -> None:
    """Over slow links a small chunk after a long past passes queries; passing a million keys per chunk would take far longer."""
    s = system(16, 1)
    got = prefill_attention_s(LLAMA, cp(16), s, np.array([512.0]), 1e6)[0]
    keys = 15 * LLAMA.n_layers * s.network.p2p_s(kv_bytes_per_token(LLAMA, ONE) / LLAMA.n_layers * 1e6 / 16, 1)
    assert got < 0.5 * float(keys)


def test_cache_is_held_in_equal_parts() -> None:
    engine, gpu = serving_engine("vllm"), registry.accelerator("h100-sxm")
    alone = serve_memory(LLAMA, ONE, engine, gpu, 8192, 64, 16)
    shared = serve_memory(LLAMA, cp(8), engine, gpu, 8192, 64, 16)
    assert shared.weights_bytes == alone.weights_bytes, "weights are replicated"
    assert shared.kv_bytes_per_token == alone.kv_bytes_per_token / 8
    assert 8 * alone.kv_blocks <= shared.kv_blocks < 8.5 * alone.kv_blocks


def test_work_on_tokens_is_that_of_attention_data_parallelism() -> None:
    reach, s = Reach(tokens=600, chunk=512, seqs=64), system()
    for name in ("llama3.1-8b", "qwen3-30b-a3b"):
        model = registry.model(name)
        assert step_times(model, cp(8), s, reach).linear == step_times(model, EnginePlan(dp=8), s, reach).linear


def test_million_token_prompts_on_eight_gpus() -> None:
    """Ordinary: they fit, finish, and first tokens come in 1/8 of one rank's FLOPs at 40 to 100 % of peak."""
    n = 3
    work = ServeWorkload(arrival_s=np.arange(n) * 1.0, prompt_tokens=np.full(n, 10**6), output_tokens=np.full(n, 20))
    plan = cp(8, token_budget=65536)
    out = simulate_serving(LLAMA, registry.cluster("h100-sxm", 8), plan, work)
    assert not len(out.rejected)
    flops = 2 * 7.5e9 * 1e6 + 2 * LLAMA.n_layers * LLAMA.n_heads * LLAMA.head_dim * 1e12
    floor = flops / 8 / s_peak()
    assert floor < out.first_s[0] < floor / 0.4
    alone = simulate_serving(LLAMA, registry.cluster("h100-sxm", 1), dataclasses.replace(plan, cp=1), work)
    assert len(alone.rejected) == n, "one card cannot hold the cache"


def s_peak() -> float:
    return registry.accelerator("h100-sxm").peak_flops_per_s("bf16")


def test_pipeline_stages_share_attention() -> None:
    """pp stages read their own layers' caches at once: a step of equal sequences costs 1/pp of one card's attention, not all of it."""
    reach = Reach(tokens=8192 + 64, chunk=8192, seqs=64)
    one, four = (step_times(LLAMA, EnginePlan(pp=pp), system(4), reach) for pp in (1, 4))
    assert four.decode_slope[64] == pytest.approx(one.decode_slope[64] / 4, rel=0.3)
    assert four.prefill_slope[8192] == pytest.approx(one.prefill_slope[8192] / 4, rel=0.25)
    assert four.prefill[8192] == pytest.approx(one.prefill[8192] / 4, rel=0.25)
