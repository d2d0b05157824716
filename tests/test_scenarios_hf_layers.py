"""Which layers of a config keep a state, by each of the ways configs say it; real configs are in test_scenarios_hf_config."""

from __future__ import annotations

from typing import Any

import pytest
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.hf_config import parse

NEXT: dict[str, Any] = {
    "model_type": "qwen3_next", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_hidden_layers": 8, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 4096, "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
}  # fmt: skip
LINEAR, FULL = "linear_attention", "full_attention"


@pytest.mark.parametrize(
    ("changes", "full"),
    [
        ({"full_attention_interval": 4}, [3, 7]),
        ({"layer_types": [LINEAR, FULL] * 4}, [1, 3, 5, 7]),
        ({"layer_types": [LINEAR, LINEAR, FULL] * 2 + [LINEAR, FULL]}, [2, 5, 7]),
        ({"layer_types": [LINEAR] * 8}, []),
        ({"full_attention_interval": 8, "layer_types": [LINEAR, FULL] * 4}, [1, 3, 5, 7]),
        ({"attn_type_list": [0, 0, 0, 1] * 2}, [3, 7]),
        ({"linear_attn_config": {"full_attn_layers": [3, 6, 8], "num_heads": 2, "head_dim": 4}}, [2, 5, 7]),
    ],
)
def test_full_layers(changes: dict[str, Any], full: list[int]) -> None:
    spec = parse(NEXT | changes, "x")
    assert [i for i in range(8) if spec.is_full_attention_layer(i)] == full
    assert "irregular" not in spec.source


def test_an_irregular_pattern_is_noted() -> None:
    spec = parse(NEXT | {"layer_types": [FULL, LINEAR, LINEAR, LINEAR, LINEAR, FULL, LINEAR, LINEAR]}, "x")
    assert spec.full_attention_every == 4
    assert "full-attention layers are irregular: taken as one of every 4" in spec.source


def test_a_config_of_full_layers_alone_has_no_states() -> None:
    spec = parse(NEXT | {"layer_types": [FULL] * 8}, "x")
    assert spec.linear_attention == ""
    assert spec.n_full_attention_layers == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_attention_interval": 4, "linear_key_head_dim": None}, "the config of x has no linear_key_head_dim"),
        ({"full_attention_interval": "4"}, "full_attention_interval='4' in the config of x is not a whole number"),
        ({"layer_types": [LINEAR, {}]}, "neither softmax nor linear attention .layer type {}"),
        ({"linear_attn_config": {"full_attn_layers": ["a"]}}, "full_attn_layers=.'a'. in the config of x must be layers from 1 to 8"),
        ({"full_attention_interval": 4, "linear_num_key_heads": 3}, "linear_key_heads must divide linear_heads"),
        (
            {"index_topk": 64, "index_n_heads": 2, "index_head_dim": 16},
            "needs index_heads and index_dim of at least 1, and latent attention",
        ),
        ({"compress_ratios": [4, 4]}, "x has compressed caches .compress_ratios=.4, 4.., which are not priced"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse(NEXT | changes, "x")
