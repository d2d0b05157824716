"""Context parallelism in serving: a prompt chunk's attention spread over cp ranks, and decode over a KV cache held in equal parts.

For all work on single tokens (projections, FFN, experts, norms, head) a cp rank is one more attention-data-parallel rank: weights are
replicated, the step's tokens are spread, routed experts are shared by all. Only attention knows that the cache is in parts.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from . import serving_attention
from .arrays import Array
from .overlap import exposed
from .serving_memory import KV_BYTES
from .serving_ops import ServeSystem

OUTPUT_BYTES = 2.0
STATE_BYTES = 4.0
"""Outputs and queries travel in 16 bits; running sums and log-sum-exps stay in 32."""


def spread(plan: EnginePlan) -> EnginePlan:
    """The plan as work on single tokens sees it: cp ranks are dp ranks. One of ``cp = 1`` comes back as it is."""
    return plan if plan.cp == 1 else dataclasses.replace(plan, dp=plan.dp * plan.cp, cp=1)


def decode_attention_s(
    model: ModelSpec, plan: EnginePlan, system: ServeSystem, sequences: Array, kv_tokens: float, queries: int = 1
) -> Array:
    """All layers' attention of one new token in each of ``sequences``, each with ``kv_tokens`` cached; seconds, shape of ``sequences``.

    Each of cp ranks reads ``kv_tokens/cp`` for all sequences of its dp rank. Per full-attention layer the queries are gathered over cp,
    then log-sum-exps (4 bytes a head) gathered and partial outputs reduce-scattered. A sequence of one token is on one rank: no messages.
    Layers with a window keep it on every rank. Source: vLLM documentation, context parallel deployment; Medha (2024), KV parallelism.
    """
    alone = dataclasses.replace(plan, cp=1)
    if plan.cp == 1 or kv_tokens <= 1:
        return serving_attention.decode_attention_s(model, alone, system, sequences, kv_tokens, queries)
    own = serving_attention.decode_attention_s(model, alone, system, sequences, max(kv_tokens / plan.cp, 1.0), queries)
    rows = np.ceil(sequences / (plan.dp * plan.pp)) * -(-model.n_heads // plan.tp)
    qk, v = _widths(model)
    net = system.network
    messages = (
        net.all_gather_s(OUTPUT_BYTES * rows * qk, plan.cp, plan.tp)
        + net.all_gather_s(STATE_BYTES * rows * plan.cp, plan.cp, plan.tp)
        + net.reduce_scatter_s(OUTPUT_BYTES * rows * v, plan.cp, plan.tp)
    )
    return own + model.n_full_attention_layers * messages


def prefill_attention_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, chunk: Array, past: float | Array) -> Array:
    """All layers' attention of a prompt chunk after ``past`` tokens, less the launch that a step pays once; seconds, shape of ``chunk``.

    A rank asks ``q = chunk/cp`` of the queries, dealt so that all see equally many keys (zigzag): ``q·(past + chunk/2)`` pairs. It passes
    round a ring either its keys and values or its queries and their partial outputs, whichever is cheaper; all hops but the first block's
    hide behind the attention of a block (``exposed``). Source: Yang et al. 2024 (arXiv 2411.01783), §3: pass-KV and pass-Q.
    """
    alone = dataclasses.replace(plan, cp=1)
    if plan.cp == 1:
        return serving_attention.prefill_attention_s(model, plan, system, chunk, past)
    q = np.maximum(np.ceil(chunk / plan.cp), 1)
    seen = past + chunk / 2  # keys an average query sees: the last q of them and what is before
    compute = serving_attention.prefill_attention_s(model, alone, system, q, np.maximum(seen - q / 2, 0))
    hops, full = plan.cp - 1, model.n_full_attention_layers
    heads, (qk, v) = -(-model.n_heads // plan.tp), _widths(model)
    compute = compute + full * hops * system.roofline.stream_s(3 * STATE_BYTES * q * heads * v)  # blocks join the running output
    behind = compute * hops / plan.cp
    kv = full * hops * system.network.p2p_s(_kv_bytes(model, plan) * (past + chunk) / plan.cp, plan.tp)
    asked = full * hops * system.network.p2p_s(OUTPUT_BYTES * q * heads * qk, plan.tp)
    answers = full * system.network.all_to_all_s(q * plan.cp * heads * (OUTPUT_BYTES * v + STATE_BYTES), plan.cp, plan.tp)
    pass_kv, pass_q = exposed(kv, behind, 1.0), exposed(asked, behind, 1.0) + answers
    out: Array = compute + np.minimum(pass_kv, pass_q)
    return out


def _widths(model: ModelSpec) -> tuple[float, float]:
    """Elements of one head's query and output as attention over the cache sees them (latents under MLA)."""
    if model.is_mla:
        return float(model.kv_lora_rank + model.rope_head_dim), float(model.kv_lora_rank)
    return float(model.qk_dim), float(model.v_dim)


def _kv_bytes(model: ModelSpec, plan: EnginePlan) -> float:
    """Keys and values of one token and layer on one rank, in the cache's format."""
    width = KV_BYTES[plan.kv_dtype]
    if model.is_mla:
        return width * (model.kv_lora_rank + model.rope_head_dim)
    return width * -(-model.n_kv_heads // plan.tp) * (model.qk_dim + model.v_dim)
