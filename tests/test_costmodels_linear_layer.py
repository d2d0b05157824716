"""Layers with recurrent states: parameters, states and work of a tiny one of each kind by hand, and the technique's closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from roofplan.costmodels import linear_layer as linear
from roofplan.costmodels.families.hybrid_attention import _shares
from roofplan.costmodels.params import count_params, layer_params
from roofplan.costmodels.step import decode_step, prefill_step
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.registry import model

PLAIN = ModelSpec(name="tiny", source="test", n_layers=8, hidden=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_hidden=128, vocab=100)
SHAPE = {"linear_heads": 4, "linear_key_heads": 2, "linear_key_dim": 8, "linear_value_dim": 16, "linear_conv_width": 4}
HYBRID = replace(PLAIN, linear_attention="gated-delta", full_attention_every=4, **SHAPE)  # type: ignore[arg-type]
KDA = replace(HYBRID, linear_attention="kda", linear_key_heads=4)
LIGHTNING = replace(HYBRID, linear_attention="lightning", linear_key_heads=4, linear_conv_width=0)


def test_parameters_of_each_kind_by_hand() -> None:
    """K = 16 (gated-delta; 32 with 4 key heads), V = 64, hidden 64."""
    inputs = 64 * (16 + 16 + 64 + 64 + 4 + 4)  # q, k, v, gate, decay, strength
    assert linear.linear_layer_params(HYBRID) == inputs + 64 * 64 + 4 * (16 + 16 + 64) + 4 + 4 + 16
    inputs = 64 * (32 + 32 + 64 + 4) + 64 * 8 + 8 * 32 + 64 * 16 + 16 * 64  # q, k, v, strength; decay and gate through low ranks
    assert linear.linear_layer_params(KDA) == inputs + 64 * 64 + 4 * (32 + 32 + 64) + 4 + 32 + 16
    assert linear.linear_layer_params(LIGHTNING) == 64 * (32 + 32 + 64 + 64) + 64 * 64 + 64
    assert linear.linear_layer_params(PLAIN) == 0


def test_a_state_in_bytes_by_hand() -> None:
    """4 heads of 8 x 16 in 32 bits, and three inputs of 96 convolved channels in 16."""
    assert linear.state_bytes(HYBRID) == 4 * 8 * 16 * 4 + 3 * 96 * 2
    assert linear.state_bytes(HYBRID, tp=2, dtype="bf16") == 2 * 8 * 16 * 2 + 3 * 96 * 2 / 2
    assert linear.state_bytes(LIGHTNING) == 4 * 8 * 16 * 4
    with pytest.raises(BadInput, match="state_dtype='fp8' is not known; legal: fp32, bf16"):
        linear.state_bytes(HYBRID, dtype="fp8")


def test_work_by_hand() -> None:
    assert linear.prompt_flops(HYBRID) == 4 * (6 * 8 * 16 + 64 * (2 * 8 + 16) + 64 * 64)
    assert linear.prompt_flops(LIGHTNING) == 4 * (4 * 8 * 16 + 64 * (8 + 16))
    assert linear.token_flops(HYBRID) == 6 * 4 * 8 * 16
    assert linear.token_flops(LIGHTNING) == 4 * 4 * 8 * 16
    five = (8 + 64) + 2 * 64 + (64 + 2 * 24) + 2 * (2 * 24 + 8 * 16 / 64)
    assert linear.prompt_bytes(HYBRID) == 2 * 4 * five
    assert linear.prompt_bytes(LIGHTNING) == 2 * 4 * (24 + 2 + 48 + 2)


def test_it_is_the_closed_form_of_kimi_linear() -> None:
    """With equal dims ``6 d² + 3 C d + C²`` FLOPs a head and token: what the technique of that paper charges against full attention."""
    kimi = model("kimi-linear-48b-a3b")
    assert linear.prompt_flops(kimi) == 32 * (6 * 128**2 + 3 * 64 * 128 + 64**2)
    step = replace(prefill_step(kimi, prompt_tokens=1e6), kv_tokens=1e6)
    share, _ = _shares(step, step.kv_tokens, 0, 0, 128, 64)
    full = 1e6 * kimi.n_heads * (kimi.qk_dim + kimi.v_dim)
    assert share * full == pytest.approx(linear.prompt_flops(kimi))


def test_published_state_of_qwen35() -> None:
    """64 heads of 128 x 128: 4 MiB a layer in 32 bits, 45 layers, 3 inputs of 12,288 channels besides."""
    qwen = model("qwen3.5-397b-a17b")
    assert qwen.n_linear_layers * linear.state_bytes(qwen) == 45 * (4 * 2**20 + 3 * 12288 * 2)


def test_layers_sum_to_the_mixers() -> None:
    count = count_params(HYBRID)
    assert count.n_linear_layers == 6
    assert count.mixers(8) == 2 * count.attn_per_layer + 6 * count.linear_per_layer
    layers = layer_params(HYBRID)
    assert layers[2] - layers[3] == count.linear_per_layer - count.attn_per_layer
    assert sum(layers) == count.total - count.embedding - count.head - count.final_norm


def test_a_hybrid_without_linear_layers_counts_as_the_plain_model() -> None:
    none = replace(HYBRID, full_attention_every=1)
    assert count_params(none) == replace(count_params(PLAIN), linear_per_layer=count_params(none).linear_per_layer)
    for step, plain in (
        (decode_step(none, kv_tokens=1000.0), decode_step(PLAIN, kv_tokens=1000.0)),
        (prefill_step(none, prompt_tokens=1000.0), prefill_step(PLAIN, prompt_tokens=1000.0)),
    ):
        assert replace(step, model=PLAIN) == plain


def test_decoding_reads_and_writes_the_states_whatever_is_cached() -> None:
    short, long = (decode_step(HYBRID, kv_tokens=n, n_seqs=3.0) for n in (100.0, 10_000.0))
    assert short.other_bytes == long.other_bytes == 2 * 3 * 6 * linear.state_bytes(HYBRID)
    assert long.kv_bytes == 100 * short.kv_bytes
    assert long.held_kv_bytes == long.kv_bytes + long.other_bytes / 2
