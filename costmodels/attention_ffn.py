"""What a decoded token costs when attention and FFN run on different cards: each pays for what binds it."""

from __future__ import annotations

from collections.abc import Mapping

from ..scenarios.hardware import Accelerator
from ..scenarios.model import ModelSpec
from .params import count_params
from .step import decode_attention_flops, kv_cache_bytes

HOUR_S = 3600.0


def token_work(model: ModelSpec, tokens: float, *, kv_element_bytes: float = 1.0) -> dict[str, float]:
    """Bytes and FLOPs of one decoded token at ``tokens`` of context: cache read, attention core, its projections, FFN.

    Attention counts ``4 a d N`` as the source does; under MLA d is the latent with its rope key. Source: Step-3 (2025), table 2.
    """
    p = count_params(model)
    attention = float(decode_attention_flops(model, tokens))
    if model.is_mla:
        width = model.kv_lora_rank + model.rope_head_dim
        attention = 4.0 * model.n_heads * width * tokens * model.n_layers
    ffn = p.n_dense_ffn_layers * p.dense_ffn_per_layer + p.n_moe_layers * (model.top_k * p.expert + p.shared_per_layer)
    return {
        "cache_bytes": float(kv_cache_bytes(model, tokens, kv_element_bytes)),
        "attention_flops": attention,
        "linear_flops": 2.0 * p.mixers(model.n_layers),
        "ffn_flops": 2.0 * ffn,
    }


def split_usd(
    work: Mapping[str, float],
    attention: Accelerator,
    attention_usd_per_h: float,
    ffn: Accelerator,
    ffn_usd_per_h: float,
    *,
    dtype: str = "fp8",
) -> float:
    """Dollars of one token: ``(max(FLOP_attn/F, B_cache/W) + FLOP_lin/F) usd_a + FLOP_ffn/F usd_f``, at datasheet rates.

    The cards work on different micro-batches at once, so each costs only its own time. Source: Step-3 (2025), its cost formula and table 6.
    """
    rate = attention.peak_flops_per_s(dtype)
    core = max(work["attention_flops"] / rate, work["cache_bytes"] / attention.hbm_bytes_per_s)
    attention_s = core + work["linear_flops"] / rate
    ffn_s = work["ffn_flops"] / ffn.peak_flops_per_s(dtype)
    return (attention_s * attention_usd_per_h + ffn_s * ffn_usd_per_h) / HOUR_S
