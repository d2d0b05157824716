"""A Hugging Face ``config.json`` as a table with typed reads, and which of its keys say what of a model."""

from __future__ import annotations

import reprlib
from typing import Any

from .errors import BadInput

KEYS = {
    "n_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "n_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "n_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "attn_config.kv_n_heads"),
    "head_dim": ("head_dim", "kv_channels"),
    "ffn_hidden": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "ff_intermediate_size", "ffn_config.ffn_hidden_size"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "max_seq_tokens": (
        "max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length", "max_seq_len", "model_max_length",
    ),
    "n_experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "ffn_config.moe_num_experts"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts", "ffn_config.moe_top_k"),
    "moe_ffn_hidden": ("moe_intermediate_size",),
    "n_shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "shared_ffn_hidden": ("shared_expert_intermediate_size", "shared_intermediate_size"),
    "n_dense_layers": ("first_k_dense_replace",),
    "moe_every": ("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step"),
    "n_expert_groups": ("n_group",),
    "top_k_groups": ("topk_group",),
    "q_lora_rank": ("q_lora_rank",),
    "kv_lora_rank": ("kv_lora_rank",),
    "n_mtp_layers": ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers"),
}  # fmt: skip
"""Field of ModelSpec -> keys it may have in a config, dots for nested tables; the first that is present counts."""


class Table:
    """A config with typed reads: None counts as absent; a wrong type is one sentence."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        self.data, self.name = data, name

    def raw(self, key: str) -> Any:
        value: Any = self.data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise BadInput(f"the config of {self.name} has no {key}")
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadInput(f"{key}={reprlib.repr(value)} in the config of {self.name} is not a whole number")
        if not least <= value <= 10**12:
            raise BadInput(f"{key} in the config of {self.name} must be a whole number between {least} and 1e12")
        return value

    def count(self, field: str, default: int | None = None, least: int = 1) -> int:
        """A ModelSpec field by the first of its keys that is present; BadInput naming them all if none is and there is no default."""
        for key in KEYS[field]:
            if self.raw(key) is not None:
                return self.whole(key, least=least)
        if default is None:
            first, *others = KEYS[field]
            raise BadInput(f"the config of {self.name} has no {first} (looked for {', '.join(others) or 'nothing else'} as well)")
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadInput(f"{key}={reprlib.repr(value)} in the config of {self.name} is not true or false")
        return value

    def text(self, key: str) -> str:
        value = self.raw(key)
        return value[:80] if isinstance(value, str) else ""
