"""Hugging Face configs: real ones equal the registry's models, others reproduce published counts, hostile ones are one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from roofplan.costmodels.params import count_params
from roofplan.scenarios.errors import BadFile, BadInput
from roofplan.scenarios.hf_config import MAX_CONFIG_BYTES, parse, read
from roofplan.scenarios.registry import model

CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "hf_configs.json").read_text())
"""The keys that matter of public config.json files, by the registry's name of the model."""

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
NOT_SHAPE = ("name", "source", "hf_ids", "aliases", "published_params", "published_active_params")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_real_config_equals_the_registry(name: str) -> None:
    got, known = asdict(parse(CONFIGS[name], name)), asdict(model(name))
    assert {k: v for k, v in got.items() if k not in NOT_SHAPE} == {k: v for k, v in known.items() if k not in NOT_SHAPE}
    assert "unknown" not in got["source"]


@pytest.mark.parametrize(
    ("quantised", "weights", "experts"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", ""),
        ({"quant_method": "fp8"}, "fp8", ""),
        ({"quant_method": "mxfp4"}, "bf16", "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4", ""),
        ({"quant_method": "exl2", "bits": 4}, "bf16", ""),
        (None, "bf16", ""),
    ],
)
def test_formats_of_a_quantised_checkpoint(quantised: dict[str, Any] | None, weights: str, experts: str) -> None:
    got = parse(LLAMA | {"quantization_config": quantised}, "quantised")
    assert (got.weight_dtype, got.expert_dtype) == (weights, experts)
    assert ("'exl2' read as 16-bit weights" in got.source) == (quantised is not None and quantised["quant_method"] == "exl2")


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (  # bigcode/starcoder2-15b
            {"model_type": "starcoder2", "hidden_size": 6144, "num_attention_heads": 48, "num_key_value_heads": 4, "num_hidden_layers": 40,
             "intermediate_size": 24576, "vocab_size": 49152, "max_position_embeddings": 16384, "sliding_window": 4096, "use_bias": True,
             "tie_word_embeddings": False},
            15_957_889_024,
        ),
        (  # bigcode/starcoder, multi-query
            {"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_layer": 40, "n_inner": 24576, "n_positions": 8192,
             "vocab_size": 49152, "multi_query": True},
            15_517_456_384,
        ),
        (  # CohereForAI/c4ai-command-r-v01
            {"model_type": "cohere", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 64, "num_hidden_layers": 40,
             "intermediate_size": 22528, "vocab_size": 256000, "max_position_embeddings": 8192},
            34_980_831_232,
        ),
        (  # stabilityai/stablelm-3b-4e1t
            {"model_type": "stablelm", "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 32, "num_hidden_layers": 32,
             "intermediate_size": 6912, "vocab_size": 50304, "max_position_embeddings": 4096, "use_qkv_bias": False,
             "tie_word_embeddings": False},
            2_795_443_200,
        ),
        (  # internlm/internlm2-7b
            {"model_type": "internlm2", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
             "intermediate_size": 14336, "vocab_size": 92544, "max_position_embeddings": 32768, "bias": False},
            7_737_708_544,
        ),
        (  # zai-org/chatglm3-6b
            {"model_type": "chatglm", "hidden_size": 4096, "num_attention_heads": 32, "num_layers": 28, "ffn_hidden_size": 13696,
             "padded_vocab_size": 65024, "seq_length": 8192, "multi_query_group_num": 2, "multi_query_attention": True, "kv_channels": 128,
             "add_qkv_bias": True},
            6_243_584_000,
        ),
        (  # EleutherAI/gpt-neo-2.7B
            {"model_type": "gpt_neo", "hidden_size": 2560, "num_heads": 20, "num_layers": 32, "vocab_size": 50257,
             "intermediate_size": None, "max_position_embeddings": 2048, "window_size": 256},
            2_651_307_520,
        ),
        (  # microsoft/Phi-3-small-8k-instruct
            {"model_type": "phi3small", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
             "ff_intermediate_size": 14336, "vocab_size": 100352, "max_position_embeddings": 8192},
            7_392_272_384,
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)  # fmt: skip
def test_published_counts_of_other_families(config: dict[str, Any], published: int) -> None:
    assert count_params(parse(config, "x")).total == pytest.approx(published, rel=2e-4)


def test_unknown_architecture_is_read_by_llamas_keys_and_says_so() -> None:
    spec = parse(LLAMA | {"model_type": "brand_new"}, "x")
    assert spec.source == "config.json, model_type brand_new; unknown model_type 'brand_new', read by Llama's keys"
    assert count_params(spec).total == model("llama3-8b").published_params


def test_windows() -> None:
    """A window at or over the context is none; layer_types decides over the family; an irregular pattern is noted."""
    assert parse(LLAMA | {"sliding_window": 8192}, "x").window_tokens == 0
    assert parse(LLAMA | {"sliding_window": 4096}, "x").window_tokens == 4096
    assert parse(LLAMA | {"model_type": "qwen2", "sliding_window": 4096}, "x").window_tokens == 0
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 8
    assert parse(LLAMA | {"sliding_window": 512, "layer_types": kinds}, "x").full_attention_every == 4
    assert parse(LLAMA | {"sliding_window": 512, "layer_types": ["full_attention"] * 32}, "x").window_tokens == 0
    odd = parse(LLAMA | {"sliding_window": 512, "layer_types": kinds[::-1]}, "x")
    assert odd.full_attention_every == 4
    assert "layer_types is irregular" in odd.source


def changed(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (LLAMA | changes).items() if v is not ...}


MOE = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], r"the config of x is not a JSON object but \[\]"),
        (changed(hidden_size=...), "the config of x has no hidden_size \\(looked for n_embd, d_model as well\\)"),
        (changed(vocab_size=None), "the config of x has no vocab_size"),
        (changed(hidden_size="4096"), "hidden_size='4096' in the config of x is not a whole number"),
        (changed(hidden_size=4096.0), "hidden_size=4096.0 in the config of x is not a whole number"),
        (changed(hidden_size=float("nan")), "hidden_size=nan in the config of x is not a whole number"),
        (changed(hidden_size=True), "hidden_size=True in the config of x is not a whole number"),
        (changed(hidden_size=[4096]), r"hidden_size=\[4096\] in the config of x is not a whole number"),
        (changed(num_attention_heads=0), "num_attention_heads in the config of x must be a whole number between 1 and 1e12"),
        (changed(num_hidden_layers=-32), "num_hidden_layers in the config of x must be a whole number between 1"),
        (changed(num_hidden_layers=10**5000), "num_hidden_layers in the config of x must be a whole number between 1"),
        (changed(num_hidden_layers=10**9), "n_layers=1000000000 of x must be between 1 and 10,000"),
        (changed(num_key_value_heads=5), "n_kv_heads=5 does not divide n_heads=32 of x; legal: 1, 2, 4, 8, 16, 32"),
        (changed(num_attention_heads=33), "num_attention_heads=33 does not divide hidden_size=4096 of x, and no head_dim is given"),
        (changed(tie_word_embeddings="yes"), "tie_word_embeddings='yes' in the config of x is not true or false"),
        (changed(**(MOE | {"num_experts_per_tok": 9})), "top_k=9, moe_ffn_hidden=14336 of x"),
        (changed(**(MOE | {"num_experts_per_tok": None})), "the config of x has no num_experts_per_tok"),
        (changed(text_config=[1]), r"text_config in the config of x is not a JSON object but \[1\]"),
        (changed(kv_lora_rank=512), "qk_nope_head_dim"),
        (changed(model_type="bert"), "model_type 'bert' of x is not a decoder-only language model"),
        (changed(is_encoder_decoder=True), "is not a decoder-only language model"),
        (changed(mamba_d_state=128), r"x has layers that are neither softmax nor linear attention \(mamba_d_state\)"),
        (changed(layer_types=["full_attention", "mamba"]), r"neither softmax nor linear attention \(layer type 'mamba'\)"),
        (changed(hc_mult=4), r"x has hyper-connections \(hc_mult=4\), which are not priced"),
        (changed(index_topk_freq=4), r"x has indexers shared by layers \(index_topk_freq=4\)"),
        (changed(index_topk=64), "the config of x has no index_n_heads"),
        (changed(linear_attn_config={"full_attn_layers": [0]}), r"full_attn_layers=\[0\] in the config of x must be layers from 1 to"),
    ],
)
def test_hostile_configs_are_one_sentence(config: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        parse(config, "x")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"hidden_size": 4096', "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "not valid JSON"),
        ('{"hidden_size": 1, "hidden_size": 2}', "the key 'hidden_size' is given twice"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"hidden_size": Infinity}', "hidden_size=inf in the config"),
        ("null", "is not a JSON object but None"),
        ("\ufeff{}", "not valid JSON"),
    ],
)
def test_hostile_files_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"this folder holds no config\.json; give a Hugging Face model folder"):
        read(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BadFile, match="not a regular file"):
        read(tmp_path)
    big = tmp_path / "big.json"
    big.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(BadFile, match="over the limit of 8,388,608"):
        read(big)
    (tmp_path / "bin.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="not UTF-8 text"):
        read(tmp_path / "bin.json")


_KEYS = sorted({key for config in CONFIGS.values() for key in config} | {"head_dim", "text_config", "use_bias", "no_bias"})
_SCALARS = st.none() | st.booleans() | st.integers(-2, 300) | st.integers() | st.floats() | st.text(max_size=6)
_VALUES = _SCALARS | st.lists(_SCALARS, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), _SCALARS, max_size=4)
_KINDS = st.sampled_from(sorted({str(c["model_type"]) for c in CONFIGS.values()} | {"cohere", "brand_new"}))


@given(config=st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), _VALUES, max_size=12))
@example(config={"text_config": {"text_config": {}}})
def test_any_object_is_a_model_or_bad_input(config: dict[str, Any]) -> None:
    try:
        parse(config, "x")
    except BadInput as error:
        assert "\n" not in str(error)


@given(kind=_KINDS, changes=st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=3))
def test_a_damaged_config_is_a_countable_model_or_bad_input(kind: str, changes: dict[str, Any]) -> None:
    try:
        spec = parse(LLAMA | {"model_type": kind} | changes, "x")
    except BadInput:
        return
    count = count_params(spec)
    assert 0 < count.active <= count.total
