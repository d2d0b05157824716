"""The shape of a model: what cannot be one is refused with the cure; layer patterns agree with their counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.load import names
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.registry import model

SMALL = ModelSpec(name="small", source="test", n_layers=8, hidden=64, n_heads=8, n_kv_heads=4, head_dim=8, ffn_hidden=256, vocab=1000)
LINEAR = {"linear_attention": "gated-delta", "linear_heads": 4, "linear_key_heads": 2, "linear_key_dim": 8, "linear_value_dim": 8}
MOE = replace(SMALL, n_experts=16, top_k=2, moe_ffn_hidden=32)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (SMALL, {"n_layers": 0}, "n_layers=0 of small must be between 1 and 10,000"),
        (SMALL, {"hidden": 10**7}, "hidden=10000000 of small must be between 1 and 1,000,000"),
        (SMALL, {"vocab": -1}, "vocab=-1 of small must be between 1 and 100,000,000"),
        (SMALL, {"n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=8 of small; legal: 1, 2, 4, 8"),
        (SMALL, {"ffn_hidden": 0}, "ffn_hidden=0 of small must be at least 1: it has dense layers"),
        (SMALL, {"n_dense_layers": 9}, "n_dense_layers=9 of small exceeds n_layers=8"),
        (SMALL, {"moe_every": 0}, "moe_every=0 of small must be between 1"),
        (SMALL, {"kv_lora_rank": 16}, "kv_lora_rank=16 of small means MLA: rope_head_dim and v_head_dim must be at least 1"),
        (MOE, {"top_k": 17}, "top_k=17, moe_ffn_hidden=32 of small: an MoE model with n_experts=16 needs 1 <= top_k"),
        (MOE, {"moe_ffn_hidden": 0}, "top_k=2, moe_ffn_hidden=0 of small"),
        (MOE, {"n_expert_groups": 3, "top_k_groups": 1}, "n_expert_groups=3, top_k_groups=1 of small: the groups must divide n_experts=16"),
        (MOE, {"n_expert_groups": 4, "top_k_groups": 5}, "1 <= top_k_groups <= n_expert_groups"),
        (
            SMALL,
            {"linear_attention": "kda", "linear_heads": 4},
            "linear_heads=4, linear_key_heads=0, .* of small: kda layers need all four",
        ),
        (SMALL, LINEAR | {"linear_key_heads": 3}, "linear_key_heads must divide linear_heads"),
        (SMALL, LINEAR | {"window_tokens": 128}, "window_tokens=128 of small: its other layers are gated-delta; give one of the two"),
        (SMALL, {"index_top_k": 64}, "index_top_k=64 of small .DSA. needs index_heads and index_dim of at least 1, and latent attention"),
        (MOE, {"ffn_hidden": 0, "n_dense_layers": 1}, "ffn_hidden=0 of small must be at least 1"),
    ],
)
def test_refuses_what_cannot_be_a_model(base: ModelSpec, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        replace(base, **changes)


def test_all_moe_layers_need_no_dense_width() -> None:
    assert replace(MOE, ffn_hidden=0).n_moe_layers == 8


@given(
    n_layers=st.integers(1, 60),
    n_dense=st.integers(0, 60),
    moe_every=st.integers(1, 9),
    window=st.sampled_from([0, 128]),
    full_every=st.integers(0, 9),
    linear=st.booleans(),
    last=st.booleans(),
)
def test_layer_patterns_agree_with_their_counts(
    n_layers: int, n_dense: int, moe_every: int, window: int, full_every: int, linear: bool, last: bool
) -> None:
    spec = replace(
        MOE, n_layers=n_layers, n_dense_layers=min(n_dense, n_layers), moe_every=moe_every, last_layer_full=last,
        window_tokens=0 if linear else window, full_attention_every=full_every, **(LINEAR if linear else {}),
    )  # fmt: skip
    assert sum(spec.is_moe_layer(i) for i in range(n_layers)) == spec.n_moe_layers
    assert sum(spec.is_full_attention_layer(i) for i in range(n_layers)) == spec.n_full_attention_layers
    assert spec.n_full_attention_layers + spec.n_linear_layers + spec.n_window_layers == n_layers
    assert not (spec.n_linear_layers and spec.n_window_layers)


def test_published_layer_patterns() -> None:
    """Gemma 3 27B: 10 of 62 layers global; gpt-oss alternates, the first layer local; DeepSeek-V3: 3 dense layers, 58 MoE;
    Llama 4 Maverick: every other layer MoE. Source: the models' reports and configs."""
    gemma = model("gemma3-27b")
    assert [i for i in range(62) if gemma.is_full_attention_layer(i)] == list(range(5, 62, 6))
    assert [model("gpt-oss-20b").is_full_attention_layer(i) for i in range(4)] == [False, True, False, True]
    assert model("deepseek-v3").n_moe_layers == 58
    assert [model("llama4-maverick").is_moe_layer(i) for i in range(4)] == [False, True, False, True]
    assert model("mistral-7b").n_full_attention_layers == 0
    assert model("llama3-8b").n_full_attention_layers == 32


def test_mla_dims() -> None:
    """DeepSeek-V3: queries and keys of 128 + 64, values of 128 (its report, section 4.2)."""
    v3 = model("deepseek-v3")
    assert (v3.qk_dim, v3.v_dim, v3.is_mla) == (192, 128, True)
    llama = model("llama3-8b")
    assert (llama.qk_dim, llama.v_dim, llama.is_mla) == (128, 128, False)


@pytest.mark.parametrize("name", sorted(names("models")))
def test_every_model_file_loads_with_a_source(name: str) -> None:
    spec = model(name)
    assert spec.name == name
    assert len(spec.source) > 10
    assert spec.shared_hidden == 0 or spec.n_experts > 0
