"""config.json holds the shape of the model; families that transformers would run under other rules are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from roofplan.planner.emit.hfconfig import config_of, family
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios import hf_config
from roofplan.scenarios.registry import model


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama3-8b", "llama"),
        ("llama2-13b", "llama"),
        ("qwen2.5-7b", "qwen2"),
        ("qwen3-8b", "qwen3"),
        ("mixtral-8x7b", "mixtral"),
        ("qwen3-30b-a3b", "qwen3_moe"),
    ],
)
def test_family(name: str, kind: str) -> None:
    assert family(model(name))[0] == kind


@pytest.mark.parametrize("name", ["llama3-8b", "llama3.2-1b", "qwen2.5-7b", "qwen3-8b", "mixtral-8x7b", "qwen3-30b-a3b"])
def test_reading_it_back_gives_the_model(name: str) -> None:
    """Our own reader of Hugging Face configurations, which knows nothing of this writer, finds the same shape."""
    spec = model(name)
    read = hf_config.parse(config_of(spec, 1024), name)
    same = (
        "n_layers",
        "hidden",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "vocab",
        "tied_embeddings",
        "n_experts",
        "top_k",
        "qk_norm",
        "qkv_bias",
    )
    assert {f: getattr(read, f) for f in same} == {f: getattr(spec, f) for f in same}
    width = "moe_ffn_hidden" if spec.n_experts else "ffn_hidden"
    assert getattr(read, width) == getattr(spec, width)


def test_positions_reach_the_sequence() -> None:
    assert config_of(model("llama3-8b"), 2**20)["max_position_embeddings"] == 2**20
    assert config_of(model("llama3.1-8b"), 4096)["max_position_embeddings"] == model("llama3.1-8b").max_seq_tokens


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("deepseek-v3", r"latent attention \(MLA\), shared experts"),
        ("gpt3-175b", "an ungated MLP, learned positions, LayerNorm"),
        ("gemma3-27b", "a sliding window"),
        ("mpt-7b-alibi", "alibi positions"),
    ],
)
def test_other_architectures_are_refused(name: str, what: str) -> None:
    with pytest.raises(CannotExpress, match=f"{name} has .*{what}.*nearest: the Megatron-LM arguments"):
        family(model(name))


def test_mixed_dense_and_moe_layers_are_refused() -> None:
    with pytest.raises(CannotExpress, match="mixes dense and MoE layers"):
        family(replace(model("mixtral-8x7b"), n_dense_layers=2))
    with pytest.raises(CannotExpress, match="MoE with biased attention"):
        family(replace(model("mixtral-8x7b"), qkv_bias=True))
