"""A token passes only a part of the model: fewer layers, fewer neurons of an FFN, or a small model most of the time."""

from __future__ import annotations

from dataclasses import replace

from ..params import count_params
from ..step import Stage, Step, require_positive

STAGE = Stage.MODEL


def partial_model(step: Step, *, layer_frac: float = 1.0, ffn_frac: float = 1.0, kernel_frac: float = 1.0, cache_frac: float = 0.0) -> Step:
    """Work and reads of a token: ``layer_frac`` of all layers, and ``ffn_frac`` of the FFN's share of those layers' weights.

    ``kernel_frac`` is the sparse FFN's rate over the dense one's: its weights cost ``ffn_frac/kernel_frac``, never more than dense ones.
    Layers that are skipped neither read nor write their cache; ``cache_frac`` > 0 says what part is kept instead. Weights stay resident.
    Source: SkipDecode (2023); Learn To be Efficient (2024).
    """
    require_positive("partial_model", kernel_frac=kernel_frac)
    p = count_params(step.model)
    ffn = p.n_dense_ffn_layers * p.dense_ffn_per_layer + p.n_moe_layers * (step.model.top_k * p.expert + p.shared_per_layer)
    layers = p.active - p.embedding - p.positions - p.head
    share = min(ffn / layers, 1.0)
    kept = layer_frac * (1.0 - share + share * min(1.0, ffn_frac / kernel_frac))
    cache = cache_frac or layer_frac
    return replace(
        step, linear_flops=step.linear_flops * kept, weight_bytes=step.weight_bytes * kept,
        attention_flops=step.attention_flops * layer_frac, kv_bytes=step.kv_bytes * cache, held_kv_bytes=step.held_kv_bytes * cache,
    )  # fmt: skip
