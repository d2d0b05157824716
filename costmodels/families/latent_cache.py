"""Keys and values are cached as one latent per token, whole or in shards over tensor-parallel ranks."""

from __future__ import annotations

from dataclasses import replace

from ..step import Stage, Step, layer_params_active, require_positive

STAGE = Stage.MODEL


def latent_cache(step: Step, *, latent_dims: int, rope_dims: int, shards: int = 1) -> Step:
    """Cache of one GPU: ``latent/shards + rope`` elements a token and layer, in place of the model's own width.

    With shards each rank computes all heads on its slice of the latent and the whole rope key, where a rank of split heads computes its own
    on all of it: attention FLOPs ``(2 c + s r)/(2 c + r)``. So each rank also projects all heads' queries and outputs, ``s − 1`` times
    its own besides; products with the latent do not grow. A model of per-head keys that becomes one of latents keeps its FLOPs.
    Source: TPLA (2025); TransMLA (2025).
    """
    require_positive("latent_cache", latent_dims=latent_dims, shards=shards)
    model = step.model
    own = model.kv_lora_rank + model.rope_head_dim if model.is_mla else model.n_kv_heads * (model.qk_dim + model.v_dim)
    kept = (latent_dims / shards + rope_dims) / own
    work = (2.0 * latent_dims + shards * rope_dims) / (2.0 * latent_dims + rope_dims)
    heads = model.n_heads * (model.qk_dim * (model.q_lora_rank or model.hidden) + model.v_dim * model.hidden)
    wider = 1.0 + (shards - 1) * model.n_layers * heads / layer_params_active(model)
    return replace(
        step,
        kv_bytes=step.kv_bytes * kept,
        held_kv_bytes=step.held_kv_bytes * kept,
        attention_flops=step.attention_flops * work,
        linear_flops=step.linear_flops * wider,
        weight_bytes=step.weight_bytes * wider,
        held_weight_bytes=step.held_weight_bytes * wider,
    )
