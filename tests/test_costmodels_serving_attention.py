"""Attention of a serving step: recurrent states against their floors and by hand, DSA against dense attention and its indexer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels import linear_layer as linear
from roofplan.costmodels.serving import Reach, decode_secant, step_times
from roofplan.costmodels.serving_attention import decode_attention_s, prefill_attention_s, states_decode_s, states_prefill_s
from roofplan.costmodels.serving_layers import layers_s
from roofplan.costmodels.serving_ops import ServeSystem, serve_system
from roofplan.costmodels.sparse_index import index_decode_s, index_prefill_s
from roofplan.scenarios.registry import cluster, model
from roofplan.scenarios.serving import EnginePlan, serving_engine
from test_costmodels_linear_layer import HYBRID, PLAIN

GPUS = ("h200", "b200", "a100-80gb-sxm")
MODELS = ("qwen3.5-397b-a17b", "kimi-linear-48b-a3b", "minimax-m1")
REACH = Reach(tokens=600, chunk=512, seqs=64)


def system(gpu: str = "h200") -> ServeSystem:
    return serve_system(cluster(gpu, 8), serving_engine("vllm"))


def arrays(*values: float) -> list[np.ndarray]:
    return [np.array([v], float) for v in values]


@pytest.mark.parametrize("gpu", GPUS)
def test_a_hybrid_without_linear_layers_is_priced_as_the_plain_model(gpu: str) -> None:
    none = replace(HYBRID, full_attention_every=1)
    assert step_times(none, EnginePlan(), system(gpu), REACH) == step_times(PLAIN, EnginePlan(), system(gpu), REACH)


def test_decoding_a_state_by_hand() -> None:
    """6 layers: the state of 4 x 8 x 16 elements twice, the token's q, k, v, o; the convolution's inputs twice, 96 channels in and out."""
    roofline = system().roofline
    (batch,) = arrays(5)
    state = roofline.stream_s(5 * (2 * 4 * 8 * 16 * 4 + 2 * (2 * 16 + 2 * 64)))
    conv = roofline.stream_s(5 * (2 * 3 * 96 * 2 + 4 * 96))
    assert states_decode_s(HYBRID, EnginePlan(), roofline, batch) == pytest.approx(6 * (state + conv))


def test_checking_four_tokens_reads_a_state_once_and_writes_four() -> None:
    roofline = system().roofline
    (batch,) = arrays(5)
    state = roofline.stream_s(5 * (5 * 4 * 8 * 16 * 4 + 4 * 2 * (2 * 16 + 2 * 64)))
    conv = roofline.stream_s(5 * (5 * 3 * 96 * 2 + 4 * 4 * 96))
    assert states_decode_s(HYBRID, EnginePlan(), roofline, batch, 4) == pytest.approx(6 * (state + conv))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(MODELS), gpu=st.sampled_from(GPUS), tp=st.sampled_from([1, 2, 4, 8]), n=st.integers(1, 1000),
    q=st.integers(2, 200_000), dtype=st.sampled_from(["fp32", "bf16"]),
)  # fmt: skip
def test_states_never_beat_their_floors_and_rise(name: str, gpu: str, tp: int, n: int, q: int, dtype: str) -> None:
    spec, plan, one = model(name), EnginePlan(tp=tp, state_dtype=dtype), system(gpu)
    card, (batch, tokens) = one.accelerator, arrays(n, q)
    moved = n * 2 * linear.state_bytes(spec, tp=tp, dtype=dtype)
    decode = states_decode_s(spec, plan, one.roofline, batch)[0]
    assert decode >= spec.n_linear_layers * moved / card.hbm_bytes_per_s
    assert states_decode_s(spec, plan, one.roofline, batch + 1)[0] >= decode
    prefill = states_prefill_s(spec, plan, one.roofline, tokens)[0]
    assert prefill >= spec.n_linear_layers * q * linear.prompt_flops(spec) / tp / card.peak_flops_per_s("bf16")
    assert prefill >= spec.n_linear_layers * q * linear.prompt_bytes(spec) / tp / card.hbm_bytes_per_s
    assert states_prefill_s(spec, plan, one.roofline, tokens + 1)[0] >= prefill


def test_a_model_of_states_alone_costs_the_same_at_any_context() -> None:
    """Neither decode nor a prompt chunk depends on what came before."""
    alone = replace(HYBRID, full_attention_every=0)
    assert alone.n_full_attention_layers == 0
    times = step_times(alone, EnginePlan(), system(), REACH)
    assert set(times.decode_slope) == set(times.prefill_slope) == {0}
    short, long = (decode_attention_s(alone, EnginePlan(), system(), np.array([7.0]), kv)[0] for kv in (10.0, 1e6))
    assert short == long


def test_a_linear_layer_is_worth_it_at_long_contexts_only() -> None:
    qwen, one = model("qwen3-next-80b-a3b"), system()
    dense = replace(qwen, linear_attention="", full_attention_every=0)
    plan, (eight,) = EnginePlan(tp=2), arrays(8)
    short, long = (
        decode_attention_s(qwen, plan, one, eight, kv)[0] / decode_attention_s(dense, plan, one, eight, kv)[0] for kv in (128.0, 1e6)
    )
    assert long == pytest.approx(0.25, abs=0.03)  # a quarter of the layers has a cache
    assert short > 0.5


GLM, PLAN = model("glm-5"), EnginePlan(tp=8, weight_dtype="fp8_block", kv_dtype="fp8")
DENSE = replace(GLM, index_top_k=0)


def test_dsa_decodes_over_the_selected_latents() -> None:
    """Up to index_top_k tokens it is dense attention and the indexer; past them only the indexer grows, by all tokens."""
    one, (n,) = system(), arrays(16)
    layers = GLM.n_layers

    def index(kv: float) -> float:
        return float(layers * index_decode_s(GLM, one.roofline, n, np.array([kv]))[0])

    short = decode_attention_s(GLM, PLAN, one, n, 1000.0)[0]
    assert short == pytest.approx(decode_attention_s(DENSE, PLAN, one, n, 1000.0)[0] + index(1000.0))
    a, b = (decode_attention_s(GLM, PLAN, one, n, kv)[0] for kv in (5e4, 1e6))
    assert b - a == pytest.approx(index(1e6) - index(5e4))
    assert decode_attention_s(DENSE, PLAN, one, n, 1e6)[0] > 5 * b


def test_dsa_prefills_in_full_up_to_its_selection() -> None:
    one, (q,) = system(), arrays(2048)
    full = prefill_attention_s(DENSE, PLAN, one, q, 0.0)[0]
    two = np.array([2.0])  # what a step pays once
    index = GLM.n_layers * (index_prefill_s(GLM, one.roofline, q, q) - index_prefill_s(GLM, one.roofline, two, two))[0]
    assert prefill_attention_s(GLM, PLAN, one, q, 0.0)[0] == pytest.approx(full + index)
    (q,) = arrays(8192)
    assert prefill_attention_s(GLM, PLAN, one, q, 1e6)[0] < 0.6 * prefill_attention_s(DENSE, PLAN, one, q, 1e6)[0]


@settings(max_examples=40, deadline=None)
@given(q=st.integers(2, 8192), past=st.integers(0, 500_000), gpu=st.sampled_from(GPUS))
def test_dsa_never_beats_its_floor_and_rises(q: int, past: int, gpu: str) -> None:
    one, (tokens,) = system(gpu), arrays(q)
    price = prefill_attention_s(GLM, PLAN, one, tokens, float(past))[0]
    pairs = q * past + q * (q + 1) / 2
    selected = sum(min(GLM.index_top_k, past + i) for i in (1, q)) * q / 2 if past + q <= GLM.index_top_k or past >= GLM.index_top_k else 0
    peak = max(one.accelerator.peak_flops_per_s(d) for d in ("bf16", *(["fp8"] if gpu != "a100-80gb-sxm" else [])))
    work = 2 * pairs * GLM.index_heads * GLM.index_dim + 2 * selected * 8 * (GLM.qk_dim + GLM.v_dim)
    assert price * 1.001 + GLM.n_layers * 3e-5 >= GLM.n_layers * work / peak
    assert prefill_attention_s(GLM, PLAN, one, tokens, float(past + 1000))[0] >= price
    decode = decode_attention_s(GLM, PLAN, one, tokens, float(past + 2))[0]
    assert decode >= GLM.n_layers * q * 132 * (past + 2) / one.accelerator.hbm_bytes_per_s
    assert decode_attention_s(GLM, PLAN, one, tokens, float(past + 1000))[0] >= decode


@pytest.mark.parametrize("n", [1.0, 64.0])
def test_the_line_through_the_bend_is_right_on_average(n: float) -> None:
    """Steps of sequences that grow from 819 to 9,216 tokens: off by at most a fifth near the bend, by 1 % over all."""
    one, (seqs,) = system(), arrays(n)
    reach = Reach(tokens=8, chunk=8, seqs=64, kv_low_tokens=819, kv_high_tokens=9216)
    fixed, slope = decode_secant(GLM, PLAN, one, seqs, reach)
    lengths = np.linspace(819, 9216, 100)
    true = np.array([decode_attention_s(GLM, PLAN, one, seqs, kv)[0] for kv in lengths]) + layers_s(GLM, PLAN, one, seqs)[0]
    line = fixed[0] + slope[0] * n * lengths + layers_s(GLM, PLAN, one, seqs)[0]
    assert abs(np.mean(line / true - 1)) < 0.01
    assert np.max(np.abs(line / true - 1)) < 0.2
