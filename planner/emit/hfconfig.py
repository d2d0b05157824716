"""The model as a Hugging Face configuration (config.json), for the scripts that build it with transformers."""

from __future__ import annotations

from typing import Any

from ...scenarios.model import ModelSpec
from .target import CannotExpress


def config_of(model: ModelSpec, seq_tokens: int) -> dict[str, Any]:
    """The shape of ``model`` as a transformers configuration that also allows ``seq_tokens`` positions; CannotExpress as in ``family``."""
    kind, architecture = family(model)
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.ffn_hidden,
        "vocab_size": model.vocab,
        "max_position_embeddings": max(model.max_seq_tokens, seq_tokens),
        "tie_word_embeddings": model.tied_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "initializer_range": 0.02,
        "use_cache": False,
    }
    if kind == "mixtral":
        config |= {"num_local_experts": model.n_experts, "num_experts_per_tok": model.top_k, "intermediate_size": model.moe_ffn_hidden}
    if kind == "qwen3_moe":
        dense = list(range(model.n_dense_layers))
        config |= {"num_experts": model.n_experts, "num_experts_per_tok": model.top_k, "moe_intermediate_size": model.moe_ffn_hidden}
        config |= {"norm_topk_prob": True, "decoder_sparse_step": model.moe_every, "mlp_only_layers": dense}
    return config


def family(model: ModelSpec) -> tuple[str, str]:
    """(model_type, class) of the transformers family with exactly this block structure; CannotExpress if none is known."""
    reasons = {
        "latent attention (MLA)": model.is_mla,
        model.special_layers: bool(model.special_layers),
        "a sliding window, which Ulysses and SDPA would drop": bool(model.window_tokens),
        "an ungated MLP": not model.gated_mlp,
        f"{model.position} positions": model.position != "rope",
        "LayerNorm": model.norm != "rmsnorm",
        "biases in every linear": model.linear_bias,
        "shared experts": bool(model.n_experts and model.n_shared_experts),
    }
    found = [what for what, present in reasons.items() if present]
    if found:
        raise CannotExpress(f"{model.name} has {', '.join(found)}", "the Megatron-LM arguments")
    if model.n_experts:
        if model.qkv_bias:
            raise CannotExpress(f"{model.name} is an MoE with biased attention", "the Megatron-LM arguments")
        if model.qk_norm:
            return "qwen3_moe", "Qwen3MoeForCausalLM"
        if model.n_dense_layers or model.moe_every > 1:
            raise CannotExpress(f"{model.name} mixes dense and MoE layers without QK norm", "the Megatron-LM arguments")
        return "mixtral", "MixtralForCausalLM"
    if model.qk_norm:
        return "qwen3", "Qwen3ForCausalLM"
    if model.qkv_bias:
        return "qwen2", "Qwen2ForCausalLM"
    return "llama", "LlamaForCausalLM"
