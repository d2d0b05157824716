"""Bytes of activations one layer keeps for its backward pass, tensor by tensor, and what its backward needs on top while it runs."""

from __future__ import annotations

import numpy as np

from ..scenarios.framework import Framework
from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from .context import ulysses_heads
from .op import Floats
from .shard import Shard


def attention_widths(model: ModelSpec, plan: ParallelPlan, cut: Shard) -> tuple[Floats, Floats, Floats]:
    """(query, key + value, output) elements per local token inside attention, padded and replicated heads of a Ulysses group included."""
    degree = _inner(plan)
    heads, kv_heads = ulysses_heads(cut, degree)
    heads, kv_heads = heads * degree, kv_heads * degree
    return heads * model.qk_dim, kv_heads * (model.qk_dim + model.v_dim), heads * model.v_dim


def _inner(plan: ParallelPlan) -> Floats:
    """Ranks of the all-to-all inside the plan's context parallelism."""
    return np.asarray({"ulysses": plan.cp, "ulysses-ring": plan.cp_inner}.get(plan.cp_kind, 1), float)


def input_bytes(model: ModelSpec, plan: ParallelPlan, cut: Shard) -> Floats:
    """A layer's input, all that full recomputation keeps: sp_tokens * hidden elements."""
    return cut.sp_tokens * model.hidden * element_bytes(plan)


def element_bytes(plan: ParallelPlan) -> float:
    """Bytes of an activation element: 4 in fp32, else 2."""
    return 4.0 if plan.precision == "fp32" else 2.0


def linear_input_bytes(plan: ParallelPlan) -> float:
    """Bytes per element of a matmul input kept for its weight gradient: 8-bit recipes keep the quantised copy."""
    return 1.0 if plan.precision.startswith(("fp8", "mxfp8", "nvfp4")) else element_bytes(plan)


def attention_saved(model: ModelSpec, plan: ParallelPlan, cut: Shard, fw: Framework) -> Floats:
    """Saved by norm, projections and attention: norm input and output over hidden; q, k, v, output; softmax statistics.

    Without flash attention the score matrix stays too: softmax output and dropout's mask and output, 5 bytes per head and pair.
    Source: Korthikanti et al. 2022, §4.1 (34 sbh + 5 a s² b of which this is the attention half).
    """
    q, kv, o = attention_widths(model, plan, cut)
    hidden = fw.saved_hidden / 4 * cut.sp_tokens * model.hidden * (element_bytes(plan) + linear_input_bytes(plan))
    twice = o if plan.cp_kind in ("ulysses", "ulysses-ring") else 0.0  # the output by heads for attention, by tokens for the projection
    inside = cut.tokens * (q + kv + o + twice) * element_bytes(plan) * fw.saved_attention
    if model.is_mla:
        inside = inside + cut.tokens * (model.q_lora_rank + model.kv_lora_rank) * element_bytes(plan)
    scores = (
        5.0 * cut.heads * cut.batch * cut.seq**2 / np.asarray(plan.cp, float)
        if plan.attention == "unfused"
        else 4.0 * cut.heads * cut.tokens
    )
    return hidden + inside + scores


def ffn_saved(model: ModelSpec, plan: ParallelPlan, cut: Shard, fw: Framework, *, moe: bool) -> Floats:
    """Saved by norm and FFN: norm input and output; the widened inputs and the activation's output (3 widths gated, 2 plain)."""
    hidden = fw.saved_hidden / 4 * cut.sp_tokens * model.hidden * (element_bytes(plan) + linear_input_bytes(plan))
    wide = ((2.0 if model.gated_mlp else 1.0) * element_bytes(plan) + linear_input_bytes(plan)) * fw.saved_ffn
    if not moe:
        return hidden + wide * cut.tokens * cut.ffn
    rows = cut.sp_tokens * model.top_k * np.asarray(plan.expert_tp, float)
    # the permuted input once: combining weights are applied before the second matmul
    routed = rows * (wide * cut.expert_ffn + model.hidden * element_bytes(plan))
    return hidden + routed + wide * cut.tokens * cut.shared_ffn


def layer_saved(model: ModelSpec, plan: ParallelPlan, cut: Shard, fw: Framework, recompute: str) -> Floats:
    """Bytes one average layer keeps per micro-batch under this recompute policy (in device or host memory)."""
    if recompute == "full":
        return input_bytes(model, plan, cut)
    _, _, o = attention_widths(model, plan, cut)
    if recompute == "remat":  # keeps the attention kernel's inputs' source (the layer input) and its output
        return input_bytes(model, plan, cut) + cut.tokens * o * element_bytes(plan) + 4.0 * cut.heads * cut.tokens
    moe_share = model.n_moe_layers / model.n_layers
    ffn = (1 - moe_share) * ffn_saved(model, plan, cut, fw, moe=False) if moe_share < 1 else 0.0
    if moe_share:
        ffn = ffn + moe_share * ffn_saved(model, plan, cut, fw, moe=True)
    whole = attention_saved(model, plan, cut, fw) + ffn
    if recompute == "selective":
        if plan.attention == "unfused":
            whole = whole - 5.0 * cut.heads * cut.batch * cut.seq**2 / np.asarray(plan.cp, float)
        else:
            whole = whole - cut.tokens * o * element_bytes(plan) - 4.0 * cut.heads * cut.tokens
    return whole


def attention_working(model: ModelSpec, plan: ParallelPlan, cut: Shard) -> Floats:
    """Live bytes in the worst moment of a recomputed layer's attention backward.

    Hidden-wide: layer input, norm output, residual, and two gradients (5). Query, keys and values, output; gradients of the output, of
    the query (fp32 accumulator and 16-bit result: 3 widths), of keys and values, which grouped-query kernels first write expanded to
    the query heads. An all-to-all keeps a send and a receive copy of query and output; a ring the next hop's keys and values and
    their fp32 gradients; an all-gather all keys and values.
    """
    q, kv, o = attention_widths(model, plan, cut)
    grouped = ulysses_heads(cut, _inner(plan))
    expanded = np.where(grouped[0] > grouped[1], q + o, 0.0)
    wide = 4 * q + 2 * o + 2 * kv + expanded
    if plan.cp_kind in ("ulysses", "ulysses-ring"):
        wide = wide + 2 * q + 2 * o
    if plan.cp_kind in ("ring", "zigzag", "helper", "ulysses-ring"):
        wide = wide + 4 * kv
    if plan.cp_kind == "allgather":
        wide = wide + 2 * kv * np.asarray(plan.cp, float)
    scores = 6.0 * cut.heads * cut.batch * cut.seq**2 / np.asarray(plan.cp, float) if plan.attention == "unfused" else 0.0
    return element_bytes(plan) * (5 * cut.sp_tokens * model.hidden + cut.tokens * wide) + scores


def ffn_working(model: ModelSpec, plan: ParallelPlan, cut: Shard) -> Floats:
    """Live bytes in the worst moment of a recomputed layer's FFN backward.

    Hidden-wide: layer input, two norm outputs, residual, three gradients (7); query, keys, values and output, which attention's backward
    still needs; the widened inputs, the activation's output and its gradient (4 widths gated, 3 plain), of one tile when tiled.
    """
    q, kv, o = attention_widths(model, plan, cut)
    n_wide = 4.0 if model.gated_mlp else 3.0
    width = cut.ffn
    if model.n_experts:
        routed = model.top_k * np.asarray(plan.expert_tp, float) * cut.expert_ffn * cut.sp_tokens / cut.tokens
        width = np.maximum(routed + cut.shared_ffn, cut.ffn if model.n_moe_layers < model.n_layers else 0.0)
    tiles = np.maximum(1.0, np.ceil(cut.tokens / model.hidden))  # one tile is a square of hidden: the usual default
    wide = n_wide * cut.tokens * width * np.where(np.asarray(plan.tiled_mlp) > 0, 1 / tiles, 1.0)
    twice = o if plan.cp_kind in ("ulysses", "ulysses-ring") else 0.0
    return element_bytes(plan) * (7 * cut.sp_tokens * model.hidden + cut.tokens * (q + kv + o + twice) + wide)
