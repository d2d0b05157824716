"""Seconds of all layers of a serving step but for attention over caches and states, on one rank, as arrays over the tokens of the step."""

from __future__ import annotations

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from .arrays import Array
from .linear_layer import input_width, key_width, low_rank_params, narrow_width, value_width
from .serving_ops import ServeSystem, dense_ffn_s, gemm_s, messages_s, moe_s, norms_s, own_experts_s, tp_all_reduce_s


def layers_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, tokens: Array, prompts: bool = False) -> Array:
    """Every layer of a step, one with ``prompts`` or of decodes alone, but for attention over the cache.

    Pipeline stages work on ``1/pp`` of the tokens at a time, so a step takes ``pp`` such stages and ``pp`` hand-overs.
    """
    t = np.ceil(tokens / (plan.dp * plan.pp))
    per_layer = mixer_linear_s(model, plan, system, t) + norms_s(model, plan, system, t)
    total = model.n_layers * per_layer
    for share, moe in _ffn_kinds(model):
        own = own_experts_s(model, plan, system, t) if moe else dense_ffn_s(model, plan, system, t)
        ffn = own + moe_s(model, plan, system, t * plan.dp) if moe else own
        total = total + share * model.n_layers * (ffn + messages_s(model, plan, system, t, moe, prompts))
    if plan.pp > 1:
        total = total + plan.pp * system.network.p2p_s(2 * t * model.hidden, plan.tp * plan.dp)
    return total


def own_layers_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """The part of ``layers_s`` that an attention-data-parallel rank does on its own ``t`` tokens: all but routed experts and their ways."""
    total = model.n_layers * (mixer_linear_s(model, plan, system, t) + norms_s(model, plan, system, t))
    for share, moe in _ffn_kinds(model):
        ffn = own_experts_s(model, plan, system, t) if moe else dense_ffn_s(model, plan, system, t)
        total = total + share * model.n_layers * (ffn + (1 if moe else 2) * tp_all_reduce_s(system, 2.0 * model.hidden * t, plan.tp))
    return total


def _ffn_kinds(model: ModelSpec) -> list[tuple[float, bool]]:
    moe = model.n_moe_layers / model.n_layers
    return [kind for kind in ((1 - moe, False), (moe, True)) if kind[0] > 0]


def mixer_linear_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """Projections around attention, and around recurrent states where layers have those: the mean over the layers."""
    attention = attention_linear_s(model, plan, system, t)
    share = model.n_linear_layers / model.n_layers
    return attention if not share else share * linear_layer_s(model, plan, system, t) + (1 - share) * attention


def linear_layer_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """Products of one linear layer, second ones of low ranks (KDA), and two passes.

    They put the inputs in order (read, write), and norm and gate the output (read both, write). Narrow products stay in 16 bits, as the
    8-bit checkpoints have them.
    """
    dtype, v, wide, stream = plan.weight_dtype, value_width(model) / plan.tp, input_width(model) / plan.tp, system.roofline.stream_s
    total = gemm_s(system, t, wide, model.hidden, dtype) + gemm_s(system, t, model.hidden, v, dtype)
    if narrow_width(model):
        total = total + system.roofline.gemm_s(t, narrow_width(model) / plan.tp, model.hidden)
    if low_rank_params(model):
        total = total + system.roofline.gemm_s(t, key_width(model) / plan.tp, model.linear_key_dim)
        total = total + system.roofline.gemm_s(t, v, model.linear_value_dim)
    return total + stream(4 * t * wide) + stream(6 * t * v)


def attention_linear_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """Projections around attention of one layer; MLA decodes with its up-projections absorbed into per-head products.

    An output gate is a product beside queries, a pass that takes the two apart and one over the outputs. An indexer (DSA) is whole on
    every tp rank.
    """
    h, dtype = float(model.hidden), plan.weight_dtype
    heads = float(-(-model.n_heads // plan.tp))
    if not model.is_mla:
        kv = float(-(-model.n_kv_heads // plan.tp))
        q = heads * model.qk_dim
        if model.q_lora_rank:  # queries pass a low rank: down beside keys and values, then up
            first, q = gemm_s(system, t, q, model.q_lora_rank, dtype), float(model.q_lora_rank)
        else:
            first = np.zeros_like(t)
        gate = heads * model.v_dim * model.output_gate
        qkv = gemm_s(system, t, q + gate + kv * (model.qk_dim + model.v_dim), h, dtype)
        return (
            first
            + qkv
            + gemm_s(system, t, h, heads * model.v_dim, dtype)
            + system.roofline.stream_s(8 * t * gate)
            + system.roofline.stream_s(6 * t * gate)
        )
    rank, rope = float(model.kv_lora_rank), float(model.rope_head_dim)
    if model.q_lora_rank:
        down = gemm_s(system, t, model.q_lora_rank + rank + rope, h, dtype)
        query = gemm_s(system, t, heads * model.qk_dim, model.q_lora_rank, dtype)
    else:
        down = gemm_s(system, t, rank + rope, h, dtype)
        query = gemm_s(system, t, heads * model.qk_dim, h, dtype)
    absorb = system.roofline.gemm_s(t, heads * rank, model.head_dim) + system.roofline.gemm_s(t, heads * model.v_dim, rank)
    if model.index_top_k:
        query = query + index_linear_s(model, plan, system, t)
    return down + query + absorb + gemm_s(system, t, h, heads * model.v_dim, dtype)


def index_linear_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, t: Array) -> Array:
    """What an indexer (DSA) makes of each token in one layer: queries, key and head weights, and three passes over them.

    The passes rotate positions, turn by a Hadamard matrix (16 bits in and out each) and quantise (16 bits in, 8 out).
    """
    asked, stream = model.index_heads * model.index_dim, system.roofline.stream_s
    made = t * (asked + model.index_dim)
    queries = gemm_s(system, t, asked, model.q_lora_rank or model.hidden, plan.weight_dtype)
    key = gemm_s(system, t, model.index_dim, model.hidden, plan.weight_dtype)
    return queries + key + system.roofline.gemm_s(t, model.index_heads, model.hidden) + 2 * stream(4 * made) + stream(3 * made)
