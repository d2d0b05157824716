"""Seconds of attention over the KV cache, and over recurrent states, in one serving step on one rank, all layers together, as arrays."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from . import linear_layer as linear
from .arrays import Array
from .lookup import attention_keys
from .mixed_attention import mixed_decode_s
from .per_head_attention import per_head_decode_s, reads_per_head
from .roofline import Roofline
from .serving_memory import KV_BYTES
from .serving_ops import ServeSystem
from .sparse_index import index_decode_s, index_prefill_s, sparse_prefill_s
from .wide_decode import wide_decode_s


def decode_attention_s(
    model: ModelSpec, plan: EnginePlan, system: ServeSystem, sequences: Array, kv_tokens: float, queries: int = 1
) -> Array:
    """All layers' attention of one new token in each of ``sequences`` (over all dp ranks), each with ``kv_tokens`` cached.

    A state is read and written whole, whatever is cached. A step that checks ``queries`` tokens a sequence asks with as many heads more
    (``model`` has them) and writes a state for each, for the one it will go on from is not yet known. Latents of 8 bits cost no more than
    of 16: engines' kernels widen them as they load them. The one measured on Hopper (FlashAttention 3) takes four times its 16-bit price,
    15 times its bytes.
    """
    b = np.ceil(sequences / (plan.dp * plan.pp))
    one, kv = np.ones_like(b), np.full_like(b, kv_tokens)
    cached = _attention_s(model, plan, system, b, one, kv, decode=True)
    if model.is_mla and KV_BYTES[plan.kv_dtype] < KV_BYTES["bf16"]:
        wide = dataclasses.replace(plan, kv_dtype="bf16")
        cached = np.minimum(cached, _attention_s(model, wide, system, b, one, kv, decode=True))
    return cached + states_decode_s(model, plan, system.roofline, b, queries) if model.n_linear_layers else cached


def prefill_attention_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, chunk: Array, past: float | Array) -> Array:
    """All layers' attention of one prompt chunk after ``past`` tokens, less the launch that a step pays once."""
    one = np.ones_like(chunk)
    launch = _attention_s(model, plan, system, one[:1], 2 * one[:1], 2 * one[:1])[0]
    q = np.maximum(chunk, 2)
    price = np.maximum(_attention_s(model, plan, system, one, q, q + past) - launch, 0.0)
    if model.n_linear_layers:
        price = price + states_prefill_s(model, plan, system.roofline, q) - states_prefill_s(model, plan, system.roofline, 2 * one)
    return price


def states_decode_s(model: ModelSpec, plan: EnginePlan, roofline: Roofline, batch: Array, queries: int = 1) -> Array:
    """All linear layers' update by ``queries`` tokens in each of ``batch`` sequences: two kernels a layer, for convolution and state.

    Each reads its state once, writes one a token and moves the tokens' inputs and outputs in 16 bits; a state's FLOPs never bind.
    """
    conv, k, v = linear.conv_width(model) / plan.tp, linear.key_width(model) / plan.tp, linear.value_width(model) / plan.tp
    state = (1 + queries) * linear.recurrent_bytes(model, tp=plan.tp, dtype=plan.state_dtype) + 2 * queries * (2 * k + 2 * v)
    one = roofline.stream_s(batch * state)
    if conv:
        one = one + roofline.stream_s(batch * ((1 + queries) * linear.conv_bytes(model, tp=plan.tp) + 4 * queries * conv))
    return model.n_linear_layers * one


def states_prefill_s(model: ModelSpec, plan: EnginePlan, roofline: Roofline, q: Array) -> Array:
    """All linear layers' pass over a prompt chunk of ``q`` tokens: ``launches + max(FLOPs/peak, bytes/bandwidth)`` of the chunked form.

    FLOPs and bytes are counted (``linear_layer``); no such kernel was measured, so peak is met to the part that flash attention of this
    head width meets and bandwidth as by streams. The convolution passes over q, k and v once.
    """
    c = roofline.calibration.fit(*linear_rate_keys(model, roofline)).coefficients
    share = -(-model.linear_heads // plan.tp) / model.linear_heads
    flops = q * linear.prompt_flops(model) * share / (roofline.gpu.peak_flops_per_s("bf16") * c["compute_frac"])
    state = 2 * linear.recurrent_bytes(model, tp=plan.tp, dtype=plan.state_dtype)
    launches = (linear.n_prompt_kernels(model) - 1) * roofline.stream_s(np.ones_like(q))
    core = launches + np.maximum(roofline.stream_s(q * linear.prompt_bytes(model) * share + state), flops)
    conv = roofline.stream_s(q * 4 * linear.conv_width(model) / plan.tp)
    return model.n_linear_layers * (core + conv)


def linear_rate_keys(model: ModelSpec, roofline: Roofline) -> tuple[str, ...]:
    """The measured flash prefill whose head width is a state's."""
    return attention_keys("prefill", model.linear_key_dim, model.linear_value_dim, 0, "bf16", roofline.calibration.families)


def mixed_attention_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, sequences: Array, kv_tokens: Array) -> Array:
    """All layers' attention of one new token in each of ``sequences`` in one call with a short prompt chunk, less the chunk's own."""
    b = np.ceil(sequences / (plan.dp * plan.pp))
    total = np.zeros_like(b)
    for layers, window in ((model.n_full_attention_layers, 0), (model.n_window_layers, model.window_tokens)):
        if layers:
            total = total + layers * mixed_decode_s(
                system.roofline,
                batch=b,
                kv_tokens=kv_tokens,
                n_heads=-(-model.n_heads // plan.tp),
                n_kv_heads=-(-model.n_kv_heads // plan.tp),
                head_dim=model.head_dim,
                chunk_tokens=1,
                window_tokens=window,
                kv_dtype=plan.kv_dtype,
            )
    return total


def _attention_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, batch: Array, q: Array, kv: Array, decode: bool = False) -> Array:
    """Attention over the caches of all layers of a stage.

    DSA scores the whole cache and attends to the best ``index_top_k``: those latents in decode; prompts no longer than that attend in full.
    """
    if not model.index_top_k:
        return _full_s(model, plan, system, batch, q, kv, decode)
    layers, roofline = model.n_full_attention_layers, system.roofline
    if decode:
        chosen = _full_s(model, plan, system, batch, q, np.minimum(kv, model.index_top_k), decode)
        return layers * index_decode_s(model, roofline, batch, kv) + chosen
    heads, width = -(-model.n_heads // plan.tp), KV_BYTES[plan.kv_dtype]
    chosen = layers * sparse_prefill_s(model, roofline, q, kv, heads, width)
    attended = np.where(kv <= model.index_top_k, _full_s(model, plan, system, batch, q, kv, decode), chosen)
    return layers * index_prefill_s(model, roofline, q, kv) + attended


def _full_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, batch: Array, q: Array, kv: Array, decode: bool) -> Array:
    """Attention to all that is cached or in the window. MLA decodes over latents as one wide KV head, and prefills with all heads' keys."""
    heads = -(-model.n_heads // plan.tp)
    full = model.n_full_attention_layers
    qk, v, kv_heads = model.qk_dim, model.v_dim, -(-model.n_kv_heads // plan.tp)
    if model.is_mla and decode:
        qk, v, kv_heads = model.kv_lora_rank + model.rope_head_dim, model.kv_lora_rank, 1
    if decode and model.q_lora_rank and not model.is_mla:
        return full * wide_decode_s(system.roofline, batch, kv, heads, kv_heads, model.head_dim, plan.kv_dtype)

    def one_layer_s(kv: Array, window: float, kv_dtype: str) -> Array:
        found: Array = system.roofline.attention_s(
            batch=batch,
            q_tokens=q,
            kv_tokens=kv,
            n_heads=heads,
            n_kv_heads=kv_heads,
            qk_dim=qk,
            v_dim=v,
            window_tokens=window,
            kv_dtype=kv_dtype,
            phase="decode" if decode else "prefill",
        )
        if decode and system.engine.fast_8bit_cache and KV_BYTES[kv_dtype] == 1.0:  # as many bytes of 16-bit keys
            found = np.minimum(found, one_layer_s(kv / 2, window / 2, "bf16"))
        return found

    total = np.zeros_like(batch)
    alone = decode and not model.is_mla and reads_per_head(system.engine, heads, kv_heads)
    for layers, window in ((full, 0), (model.n_window_layers, model.window_tokens)):
        if layers and alone:
            seen = np.minimum(kv, window) if window else kv
            width = model.qk_dim + model.v_dim
            one = per_head_decode_s(system.roofline, system.engine, batch, seen, heads, kv_heads, width, plan.kv_dtype)
            total = total + layers * one
        elif layers:
            total = total + layers * one_layer_s(kv, window, plan.kv_dtype)
    return total
