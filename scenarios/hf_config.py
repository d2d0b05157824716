"""Reads the shape of a model from a Hugging Face ``config.json``: known families exactly, others by Llama's keys with a note."""

from __future__ import annotations

import json
import os
import reprlib
from pathlib import Path
from typing import Any

from .errors import BadFile, BadInput
from .hf_layers import check_kinds, layer_kinds
from .hf_table import Table
from .load import read_text
from .model import ModelSpec

MAX_CONFIG_BYTES = 8 * 2**20


def _alike(*kinds: str, **fields: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(" ".join(kinds).split(), fields)


_PLAIN: dict[str, Any] = {"gated_mlp": False, "norm": "layernorm", "linear_bias": True}
_LEARNED = _PLAIN | {"position": "learned", "tied_embeddings": True}
_FAMILIES: dict[str, dict[str, Any]] = {
    **_alike(
        "llama mistral ministral mixtral phi3 deepseek deepseek_v2 deepseek_v3 kimi_k2 granite granitemoe llama4 llama4_text yi",
        "mllama_text_model internlm2 internlm3 smollm3 seed_oss ernie4_5 ernie4_5_moe minimax_m2 minicpm aquila baichuan glm4_moe",
    ),
    **_alike("qwen2 qwen2_moe qwen2_vl_text qwen2_5_vl_text glm chatglm internlm", qkv_bias=True),
    **_alike("qwen3 qwen3_moe qwen3_vl_text qwen3_vl_moe_text olmo2 olmo3 olmoe hunyuan_v1_dense", qk_norm=True),
    **_alike("qwen3_next qwen3_5_text qwen3_5_moe_text", qk_norm=True, output_gate=True),
    **_alike("deepseek_v32 glm_moe_dsa kimi_linear minimax_m1 minimax_text_01 minimax"),
    "gemma": {"tied_embeddings": True},
    "gemma2": {"tied_embeddings": True, "norms_per_layer": 4, "full_attention_every": 2},
    "gemma3_text": {"tied_embeddings": True, "norms_per_layer": 4, "qk_norm": True, "full_attention_every": 6},
    "glm4": {"qkv_bias": True, "norms_per_layer": 4},
    "gpt_oss": {"linear_bias": True, "full_attention_every": 2},
    "olmo": {"norms_per_layer": 0},
    "cohere": {"norm": "layernorm", "norms_per_layer": 1, "tied_embeddings": True},
    "cohere2": {"norm": "layernorm", "norms_per_layer": 1, "tied_embeddings": True, "full_attention_every": 4},
    **_alike("stablelm dbrx phimoe", norm="layernorm"),
    "phi3small": {"norm": "layernorm", "linear_bias": True, "tied_embeddings": True},
    "nemotron": {"norm": "layernorm", "gated_mlp": False},
    "starcoder2": _PLAIN | {"tied_embeddings": True},
    "phi": _PLAIN | {"norms_per_layer": 1},
    "gptj": _PLAIN | {"norms_per_layer": 1},
    "gpt_neox": _PLAIN,
    "gpt2": _LEARNED,
    "gpt_neo": _LEARNED | {"full_attention_every": 2},
    "gpt_bigcode": _LEARNED,
    "opt": _LEARNED,
    "bloom": _PLAIN | {"position": "alibi", "tied_embeddings": True},
    "falcon": _PLAIN | {"linear_bias": False, "tied_embeddings": True},
    "RefinedWeb": _PLAIN | {"linear_bias": False, "tied_embeddings": True},
    "mpt": _PLAIN | {"position": "alibi", "tied_embeddings": True},
}
"""What a family's code fixes beside the config: the ``model_type`` -> fields that differ from Llama's."""

_FOUR_TIMES = {"gpt2", "gpt_neo", "gptj", "gpt_bigcode", "bloom", "falcon", "RefinedWeb", "mpt"}
_NOT_DECODERS = {"bert", "roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "t5", "bart", "vit", "clip", "whisper"}


def read(path: Path) -> ModelSpec:
    """The model of a ``config.json`` or of the folder that holds one; raises BadFile or BadInput, one sentence, for anything else."""
    file = path / "config.json" if os.path.isdir(path) else path
    if file != path and not file.exists():
        raise BadFile(f"{path}: this folder holds no config.json; give a Hugging Face model folder or the file itself")
    try:
        config = json.loads(read_text(file, MAX_CONFIG_BYTES), object_pairs_hook=_unique)
    except BadFile:
        raise
    except BadInput as error:
        raise BadFile(f"{file}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{file}: not valid JSON: {error}") from None
    folder = "".join(c if c.isalnum() or c in "._-" else "-" for c in file.resolve().parent.name)
    return parse(config, folder[:80] or "model")


def parse(config: Any, name: str) -> ModelSpec:
    """The model of a parsed config; ``name`` is what errors and tables call it. Raises BadInput naming the key, the value and the cure."""
    if not isinstance(config, dict):
        raise BadInput(f"the config of {name} is not a JSON object but {reprlib.repr(config)}")
    table = Table(_text_part(config, name), name)
    kind = table.text("model_type")
    _refuse_other_kinds(table, kind)
    notes = [] if kind in _FAMILIES else [f"unknown model_type {reprlib.repr(kind)}, read by Llama's keys"]
    fields = dict(_FAMILIES.get(kind, {}))
    fields |= _attention(table)
    fields |= _experts(table, kind)
    fields["n_layers"] = table.count("n_layers")
    fields["vocab"] = table.count("vocab")
    fields["n_mtp_layers"] = table.count("n_mtp_layers", default=0, least=0)
    fields["max_seq_tokens"] = table.count("max_seq_tokens", default=2048)
    fields["ffn_hidden"] = _ffn_hidden(table, kind, fields["hidden"])
    fields["tied_embeddings"] = table.flag("tie_word_embeddings", default=fields.get("tied_embeddings", False))
    fields |= _extras(table, kind, fields)
    fields |= _window(table, kind, fields, notes)
    fields |= layer_kinds(table, kind, fields, notes)
    fields |= _formats(table, notes)
    return ModelSpec(name=name, source="; ".join([f"config.json, model_type {kind or 'not given'}", *notes]), **fields)


def _text_part(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The language model's part of a multi-modal config; the whole of any other."""
    for key in ("text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if inner is not None:
            if not isinstance(inner, dict):
                raise BadInput(f"{key} in the config of {name} is not a JSON object but {reprlib.repr(inner)}")
            shared = {k: v for k, v in config.items() if k in ("tie_word_embeddings", "vocab_size")}
            return shared | inner
    return config


def _refuse_other_kinds(table: Table, kind: str) -> None:
    if kind in _NOT_DECODERS or table.raw("is_encoder_decoder") is True:
        raise BadInput(f"model_type {kind or 'not given'!r} of {table.name} is not a decoder-only language model; only those are priced")
    check_kinds(table)


def _attention(table: Table) -> dict[str, Any]:
    hidden, heads = table.count("hidden"), table.count("n_heads")
    rank = table.count("kv_lora_rank", default=0, least=0)
    if rank:
        nope, rope, v = (table.whole(f"{k}_head_dim", least=1) for k in ("qk_nope", "qk_rope", "v"))
        shape = {"head_dim": nope, "rope_head_dim": rope, "v_head_dim": v, "kv_lora_rank": rank, "n_kv_heads": heads}
        return shape | {"hidden": hidden, "n_heads": heads, "q_lora_rank": table.count("q_lora_rank", default=0, least=0)}
    one_kv = table.flag("multi_query") and not table.flag("new_decoder_architecture") and table.raw("multi_query_group_num") is None
    kv = 1 if one_kv else table.count("n_kv_heads", default=heads)
    if table.raw("head_dim") is None and table.raw("kv_channels") is None and hidden % heads:
        raise BadInput(f"num_attention_heads={heads} does not divide hidden_size={hidden} of {table.name}, and no head_dim is given")
    return {"hidden": hidden, "n_heads": heads, "n_kv_heads": kv, "head_dim": table.count("head_dim", default=max(1, hidden // heads))}


def _experts(table: Table, kind: str) -> dict[str, Any]:
    n = table.count("n_experts", default=0, least=0)
    if n <= 1:
        return {}
    fields = {key: table.count(key, default=0, least=0) for key in ("n_shared_experts", "n_dense_layers")}
    width = table.count("moe_ffn_hidden", default=0, least=0) or table.count("ffn_hidden")
    shared_width = table.count("shared_ffn_hidden", default=0, least=0)
    fields |= {"n_experts": n, "top_k": table.count("top_k"), "moe_ffn_hidden": width, "shared_ffn_hidden": shared_width}
    if shared_width or kind in ("llama4", "llama4_text"):
        fields["n_shared_experts"] = max(1, fields["n_shared_experts"])
    fields["shared_expert_gate"] = bool(shared_width) and kind.startswith(("qwen3_next", "qwen3_5_moe"))
    fields["moe_every"] = table.count("moe_every", default=1) if not isinstance(table.raw("moe_layer_freq"), list) else 1
    dense_only = table.raw("mlp_only_layers")
    if isinstance(dense_only, list) and dense_only and sorted(map(str, dense_only)) == sorted(map(str, range(len(dense_only)))):
        fields["n_dense_layers"] = len(dense_only)
    groups = table.count("n_expert_groups", default=0, least=0)
    if groups > 1:
        fields |= {"n_expert_groups": groups, "top_k_groups": table.count("top_k_groups")}
    return fields


def _ffn_hidden(table: Table, kind: str, hidden: int) -> int:
    if kind in ("llama4", "llama4_text") and table.raw("intermediate_size_mlp") is not None:
        return table.whole("intermediate_size_mlp", least=1)
    if table.raw("expansion_ratio") is not None:
        return table.whole("expansion_ratio", least=1) * hidden
    routed = table.count("moe_ffn_hidden", default=0, least=0)  # models whose layers are all MoE may name that width alone
    return table.count("ffn_hidden", default=4 * hidden if kind in _FOUR_TIMES else routed or None)


def _extras(table: Table, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Biases, norms and positions that a key of the config switches."""
    bias = table.flag("mlp_bias") or (table.flag("bias") if kind in ("falcon", "RefinedWeb") else False)
    for key in ("use_bias", "no_bias"):
        if table.raw(key) is not None and kind in ("starcoder2", "mpt"):
            fields["linear_bias"] = table.flag(key) != (key == "no_bias")
    changed: dict[str, Any] = {"linear_bias": bias or fields.get("linear_bias", False)}
    qkv = any(table.flag(key) for key in ("attention_bias", "use_qkv_bias", "add_qkv_bias", "qkv_bias"))
    changed["qkv_bias"] = qkv or fields.get("qkv_bias", False)
    changed["qk_norm"] = any(table.flag(k) for k in ("use_qk_norm", "qk_layernorm")) or fields.get("qk_norm", False)
    if table.flag("mla_use_nope"):
        changed["position"] = "none"
    if table.flag("alibi") or (kind == "baichuan" and fields["hidden"] >= 5120):
        changed["position"] = "alibi"
    if kind == "mpt" and not table.flag("attn_config.alibi"):
        changed["position"] = "learned"
    if kind in ("falcon", "RefinedWeb") and table.flag("parallel_attn", default=True) and not table.flag("new_decoder_architecture"):
        changed["norms_per_layer"] = 1
    return changed


def _window(table: Table, kind: str, fields: dict[str, Any], notes: list[str]) -> dict[str, int]:
    """Sliding-window width and which layers see everything: ``layer_types`` if given, else the family's rule."""
    off = {"window_tokens": 0, "full_attention_every": 0}
    key = {"llama4": "attention_chunk_size", "llama4_text": "attention_chunk_size", "gpt_neo": "window_size"}.get(kind, "sliding_window")
    window = table.whole(key, default=0)
    used = table.flag("use_sliding_window", default=not kind.startswith(("qwen2", "qwen3")))
    if not window or not used or window >= fields["max_seq_tokens"]:
        return off
    every = table.whole("sliding_window_pattern", default=fields.get("full_attention_every", 4 if key == "attention_chunk_size" else 0))
    types = table.raw("layer_types")
    if isinstance(types, list) and types:
        full = [i for i, t in enumerate(types) if t == "full_attention"]
        if len(full) == len(types):
            return off
        every = full[0] + 1 if full else 0
        if full != [i for i in range(len(types)) if every and (i + 1) % every == 0]:
            every = round(len(types) / len(full))
            notes.append(f"layer_types is irregular: taken as one full layer of every {every}")
    return {"window_tokens": window, "full_attention_every": every}


def _formats(table: Table, notes: list[str]) -> dict[str, str]:
    """Formats of a quantised checkpoint's weights; one that is not known counts as 16 bits, with a note."""
    method = table.text("quantization_config.quant_method")
    if method == "fp8":
        return {"weight_dtype": "fp8_block" if table.raw("quantization_config.weight_block_size") else "fp8"}
    if method == "mxfp4":
        return {"expert_dtype": "mxfp4"}
    bits = table.raw("quantization_config.bits")
    if method in ("awq", "gptq") and bits == 4:
        return {"weight_dtype": "int4"}
    if method:
        notes.append(f"quantisation {reprlib.repr(method)} read as 16-bit weights")
    return {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; BadInput if a key is given twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadInput(f"the key {twice[:80]!r} is given twice")
    return table
