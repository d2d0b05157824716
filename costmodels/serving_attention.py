"""Seconds of attention over the KV cache in one serving step on one rank, all layers together, as arrays."""

from __future__ import annotations

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from .arrays import Array
from .serving_ops import ServeSystem
from .wide_decode import wide_decode_s


def decode_attention_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, sequences: Array, kv_tokens: float) -> Array:
    """All layers' attention of one new token in each of ``sequences`` (over all dp ranks), each with ``kv_tokens`` cached."""
    b = np.ceil(sequences / (plan.dp * plan.pp))
    return _attention_s(model, plan, system, b, np.ones_like(b), np.full_like(b, kv_tokens), decode=True)


def prefill_attention_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, chunk: Array, past: float | Array) -> Array:
    """All layers' attention of one prompt chunk after ``past`` tokens, less the launch that a step pays once."""
    one = np.ones_like(chunk)
    launch = _attention_s(model, plan, system, one[:1], 2 * one[:1], 2 * one[:1])[0]
    q = np.maximum(chunk, 2)
    price = _attention_s(model, plan, system, one, q, q + past) - launch
    return np.maximum(price, 0.0)


def _attention_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, batch: Array, q: Array, kv: Array, decode: bool = False) -> Array:
    """Attention of all layers of a stage. MLA decodes over the latents as one wide KV head, and prefills with every head's own keys."""
    heads = -(-model.n_heads // plan.tp)
    full = model.n_full_attention_layers
    qk, v, kv_heads = model.qk_dim, model.v_dim, -(-model.n_kv_heads // plan.tp)
    if model.is_mla and decode:
        qk, v, kv_heads = model.kv_lora_rank + model.rope_head_dim, model.kv_lora_rank, 1
    if decode and model.q_lora_rank and not model.is_mla:
        return full * wide_decode_s(system.roofline, batch, kv, heads, kv_heads, model.head_dim, plan.kv_dtype)
    total = np.zeros_like(batch)
    for layers, window in ((full, 0), (model.n_layers - full, model.window_tokens)):
        if layers:
            total = total + layers * system.roofline.attention_s(
                batch=batch,
                q_tokens=q,
                kv_tokens=kv,
                n_heads=heads,
                n_kv_heads=kv_heads,
                qk_dim=qk,
                v_dim=v,
                window_tokens=window,
                kv_dtype=plan.kv_dtype,
                phase="decode" if decode else "prefill",
            )
    return total
