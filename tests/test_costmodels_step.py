"""Totals of a pass by hand, and what fits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.flops import attention_flops
from roofplan.costmodels.params import count_params
from roofplan.costmodels.rates import rates
from roofplan.costmodels.step import (
    Rates,
    decode_attention_flops,
    decode_step,
    floor_s,
    kv_cache_bytes,
    prefill_step,
    seconds,
    seqs_that_fit,
    tokens_per_s,
    train_pass,
    weights_read,
)
from roofplan.scenarios import registry
from tiny_step import TINY, TINY_MLA, TINY_MOE, tiny_step

ONE = Rates(
    linear_flops_per_s=100.0, attention_flops_per_s=10.0, hbm_bytes_per_s=30.0, host_bytes_per_s=5.0, network_bytes_per_s=2.0, hop_s=0.5,
    hbm_bytes=1000.0, host_ram_bytes=300.0,
)  # fmt: skip


def test_seconds_by_hand() -> None:
    """Linears 1000/100 s over 200/30, attention 100/10 s over 100/30; 8 bytes in 2 messages add 4 + 1; half again on top."""
    assert seconds(tiny_step(), ONE) == 20
    assert seconds(tiny_step(network_bytes=8.0, n_hops=2.0, fixed_s=1.0, slow_frac=0.5), ONE) == pytest.approx(1.5 * (20 + 4 + 1 + 1))
    assert seconds(tiny_step(host_bytes=150.0), ONE) == 30
    assert seconds(tiny_step(host_bytes=50.0, awaited_host_bytes=50.0), ONE) == 20 + 10  # nothing hides what a layer waits for
    assert seconds(tiny_step(weight_bytes=600.0, kv_bytes=90.0), ONE) == pytest.approx(20 + 10)
    assert tokens_per_s(tiny_step(), ONE) == pytest.approx(1 / 20)


def test_what_fits() -> None:
    """1000 - 200 of weights leave room for 5 sequences of 150 bytes; 300 bytes of host for 3 of 100."""
    assert seqs_that_fit(tiny_step(), ONE) == 5
    assert seqs_that_fit(tiny_step(host_held_bytes=100.0), ONE) == 3
    assert seqs_that_fit(tiny_step(held_weight_bytes=2000.0), ONE) == 0


def test_decode_by_hand() -> None:
    """1192 layer parameters and a head of 256, 2 FLOPs each; 8 cached elements a token and layer."""
    step = decode_step(TINY, kv_tokens=10, n_seqs=3)
    assert step.linear_flops == 2 * (1192 + 256) * 3
    assert step.kv_bytes == step.held_kv_bytes == 3 * 10 * 2 * 8 * 2
    assert step.attention_flops == 3 * 2 * 2 * 8 * 10 * 2
    assert step.weight_bytes == 2 * (1704 - 256)
    assert step.held_bytes == 2 * 1704 + 3 * 320


def test_prefill_by_hand() -> None:
    step = prefill_step(TINY, prompt_tokens=100)
    assert step.linear_flops == 2 * 1192 * 100
    assert step.attention_flops == attention_flops(TINY, 100)
    assert step.held_activation_bytes == 100 * (8 + 32) * 2
    chunked = prefill_step(TINY, prompt_tokens=100, chunk_tokens=25)
    assert (chunked.weight_bytes, chunked.kv_bytes) == pytest.approx((4 * 2 * 1704, 2.5 * 3200))


def test_training_by_hand() -> None:
    step = train_pass(TINY, seq_tokens=100)
    assert step.linear_flops == 6 * (1192 + 256) * 100
    assert step.held_state_bytes == 14 * 1704
    again = train_pass(TINY, seq_tokens=100, recompute=True)
    assert again.attention_flops / step.attention_flops == pytest.approx(4.5 / 3.5)


def test_latent_and_window_caches() -> None:
    assert kv_cache_bytes(TINY_MLA, 10) == 10 * 2 * 8 * 2
    assert decode_attention_flops(TINY_MLA, 10) == 2 * 2 * (2 * 6 + 2) * 10 * 2
    gemma = registry.model("gemma3-27b")
    full, windowed = gemma.n_full_attention_layers, gemma.n_layers - gemma.n_full_attention_layers
    per = gemma.n_kv_heads * (gemma.qk_dim + gemma.v_dim) * 2
    assert kv_cache_bytes(gemma, 100_000) == per * (full * 100_000 + windowed * gemma.window_tokens)


def test_one_token_reads_its_experts_only() -> None:
    p = count_params(TINY_MOE)
    assert weights_read(TINY_MOE, 1.0) == pytest.approx(2 * (p.total - p.embedding - 3072 + 3072 / 4))
    assert weights_read(TINY_MOE, 1000.0) == pytest.approx(2 * (p.total - p.embedding))


@settings(derandomize=True, max_examples=40)
@given(
    st.sampled_from(["a100-80gb-sxm", "h100-sxm", "rtx4090", "mi300x"]),
    st.sampled_from(["llama3-8b", "mixtral-8x7b", "deepseek-v3"]),
    st.integers(1, 10**7),
    st.integers(1, 512),
)
def test_no_pass_beats_its_floor(gpu: str, model: str, tokens: int, n_seqs: int) -> None:
    r, card, spec = rates(registry.cluster(gpu, 1)), registry.accelerator(gpu), registry.model(model)
    for step in (decode_step(spec, kv_tokens=tokens, n_seqs=n_seqs), prefill_step(spec, prompt_tokens=tokens)):
        assert math.isfinite(float(seconds(step, r)))
        assert float(seconds(step, r)) >= float(floor_s(step, card))
