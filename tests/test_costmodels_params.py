"""Parameter counts against the published ones of every model, and against tensors written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels.params import count_params, layer_params
from roofplan.scenarios.load import names
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.registry import model

EXPLAINED = {
    "opt-350m": (0.08, "embeds at 512 and projects to 1024; the table here is 50272 x 1024"),
    "gpt3-350m": (0.02, "the paper rounds 356M to 350M"),
    "kimi-linear-48b-a3b": (0.025, "48.4B without both embeddings, 49.1B of weights"),
    "llama4-scout": (0.015, "109B counts the vision encoder, the text part has 107.8B"),
}
"""Models further than 1 % from their published number: the tolerance and why."""

WITHOUT_INPUT_EMBEDDING = {
    "gpt-oss-20b", "gpt-oss-120b", "deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "deepseek-v3.2", "deepseek-r1", "kimi-linear-48b-a3b",
}  # fmt: skip
WITHOUT_EMBEDDINGS = {"glm-4.5", "glm-4.5-air", "glm-5", "minimax-m1", "minimax-m2", "moonlight-16b", "qwen3-next-80b-a3b"}
"""Whose published active parameters leave out the input embedding, or both embeddings."""

EXPLAINED_ACTIVE = {
    "qwen3-30b-a3b": (0.02, "3.35B, published as 3.3B"),
    "qwen3-30b-a3b-2507": (0.02, "3.35B, published as 3.3B"),
    "deepseek-v2-lite": (0.022, "2.45B, published as 2.4B"),
    "kimi-linear-48b-a3b": (0.04, "3.11B, published as 3B"),
    "qwen3-next-80b-a3b": (0.09, "3.25B, published as 3B"),
}


def half_a_digit(published: float) -> float:
    """Half of the last digit that is printed, relative: 1.3e9 means 1.25 to 1.35."""
    digits = f"{published:.0f}"
    return 0.5 * 10.0 ** (len(digits) - len(digits.rstrip("0"))) / published


def tolerance(published: float) -> float:
    return max(0.01, min(half_a_digit(published), 0.03))


@pytest.mark.parametrize("name", sorted(n for n in names("models") if model(n).published_params))
def test_total_is_the_published_one(name: str) -> None:
    spec = model(name)
    allowed = EXPLAINED[name][0] if name in EXPLAINED else tolerance(spec.published_params)
    assert count_params(spec).total == pytest.approx(spec.published_params, rel=allowed)


EXACT = sorted(n for n in names("models") if n not in EXPLAINED and model(n).published_params % 1e5 > 0)
"""Models whose published number counts weights to the last one."""


@pytest.mark.parametrize("name", EXACT)
def test_exact_checkpoints_agree_to_a_tenth_of_a_percent(name: str) -> None:
    """Where the published number is a count of weights, only small tensors that the docstring names may be missing."""
    assert count_params(model(name)).total == pytest.approx(model(name).published_params, rel=1e-3)


@pytest.mark.parametrize("name", sorted(n for n in names("models") if model(n).published_active_params))
def test_active_is_the_published_one(name: str) -> None:
    spec, count = model(name), count_params(model(name))
    active = count.active - (count.embedding if name in WITHOUT_INPUT_EMBEDDING | WITHOUT_EMBEDDINGS else 0)
    active -= count.head if name in WITHOUT_EMBEDDINGS else 0
    published = spec.published_active_params
    allowed = EXPLAINED_ACTIVE[name][0] if name in EXPLAINED_ACTIVE else tolerance(published)
    assert active == pytest.approx(published, rel=allowed)


@pytest.mark.parametrize("name", ["llama2-70b", "llama3-8b", "llama3.1-405b", "qwen2.5-72b", "qwen3-235b-a22b", "gemma2-27b", "phi4"])
def test_to_the_last_parameter(name: str) -> None:
    assert count_params(model(name)).total == model(name).published_params


@pytest.mark.parametrize(("name", "with_mtp"), [("glm-4.5", 358_337_776_896), ("glm-4.5-air", 110_468_824_832)])
def test_multi_token_prediction_layer(name: str, with_mtp: int) -> None:
    """The published weights hold one prediction layer with its own copy of both embeddings, and a score bias per expert."""
    count = count_params(model(name))
    assert count.total + count.mtp + count.embedding + count.head == pytest.approx(with_mtp, rel=1e-6)


def test_deepseek_v3_prediction_module() -> None:
    """The module has 11.5B parameters of its own. Source: DeepSeek-V3 repository, README_WEIGHTS.md."""
    assert count_params(model("deepseek-v3")).mtp == pytest.approx(11.5e9, rel=0.01)


def test_gpt_closed_form() -> None:
    """P = 12 l h^2 (1 + 13/(12 h) + (V + s)/(12 l h)) + 2 h. Source: Narayanan et al. 2021, equation 2, and the last norm."""
    for name in ("megatron-1.7b", "megatron-18.4b", "megatron-1008b"):
        spec = model(name)
        layers, h = spec.n_layers, spec.hidden
        expected = 12 * layers * h * h + 13 * layers * h + (spec.vocab + spec.max_seq_tokens) * h + 2 * h
        assert count_params(spec).total == expected


def test_mla_tensors_by_hand() -> None:
    """One attention layer of DeepSeek-V3, tensor by tensor as its checkpoint names them."""
    h, heads = 7168, 128
    tensors = {
        "q_a_proj": h * 1536,
        "q_a_layernorm": 1536,
        "q_b_proj": 1536 * heads * 192,
        "kv_a_proj_with_mqa": h * (512 + 64),
        "kv_a_layernorm": 512,
        "kv_b_proj": 512 * heads * (128 + 128),
        "o_proj": heads * 128 * h,
    }
    assert count_params(model("deepseek-v3")).attn_per_layer == sum(tensors.values())
    lite = count_params(model("deepseek-v2-lite"))
    assert lite.attn_per_layer == 2048 * 16 * 192 + 2048 * 576 + 512 + 512 * 16 * 256 + 16 * 128 * 2048


def test_biased_moe_tensors_by_hand() -> None:
    """gpt-oss: biases on every projection, every expert and the router; its card: 114.71B MLP, 0.96B attention, 1.16B embeddings."""
    count = count_params(model("gpt-oss-120b"))
    assert count.expert == 2880 * 5760 + 5760 + 2880 * 2880 + 2880
    assert count.router_per_layer == 128 * (2880 + 1)
    assert count.attn_per_layer == 2880 * (64 + 16) * 64 + (64 + 16) * 64 + 64 * 64 * 2880 + 2880
    assert 36 * count.moe_ffn_per_layer == pytest.approx(114.71e9, rel=1e-4)
    assert 36 * count.attn_per_layer == pytest.approx(0.96e9, rel=0.01)
    assert count.embedding + count.head == pytest.approx(1.16e9, rel=0.01)


SMALL = ModelSpec(name="s", source="t", n_layers=6, hidden=64, n_heads=8, n_kv_heads=4, head_dim=8, ffn_hidden=256, vocab=1000)


@given(
    n_experts=st.integers(0, 16),
    n_dense=st.integers(0, 6),
    moe_every=st.integers(1, 3),
    shared=st.integers(0, 2),
    gated=st.booleans(),
    bias=st.booleans(),
    tied=st.booleans(),
    learned=st.booleans(),
)
def test_parts_sum_to_the_total(
    n_experts: int, n_dense: int, moe_every: int, shared: int, gated: bool, bias: bool, tied: bool, learned: bool
) -> None:
    spec = replace(
        SMALL, n_experts=n_experts, top_k=min(2, n_experts), moe_ffn_hidden=32 if n_experts else 0, n_dense_layers=n_dense,
        moe_every=moe_every, n_shared_experts=shared, gated_mlp=gated, linear_bias=bias, tied_embeddings=tied,
        position="learned" if learned else "rope",
    )  # fmt: skip
    count = count_params(spec)
    assert sum(layer_params(spec)) + count.embedding + count.positions + count.head + count.final_norm == count.total
    assert 0 < count.active <= count.total
    assert (count.active == count.total) == (spec.n_moe_layers == 0 or spec.top_k == spec.n_experts)
    assert count.head == (0 if tied else spec.vocab * spec.hidden)


def test_counts_of_all_models_are_as_recorded(golden: Callable[[str, str], None]) -> None:
    counts = {name: count_params(model(name)) for name in sorted(names("models"))}
    golden("params.txt", "".join(f"{name} total {c.total} active {c.active} mtp {c.mtp}\n" for name, c in counts.items()))
