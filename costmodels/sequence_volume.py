"""Bytes a rank sends per transformer layer under each way to split a sequence: closed forms, before any link is chosen."""

from __future__ import annotations

import numpy as np

from .op import Floats


def megatron_sp(tokens: Floats, hidden: Floats, ranks: Floats, *, element_bytes: float = 2.0) -> Floats:
    """Tensor parallelism with sequence parallelism, forward: 2 all-gathers and 2 reduce-scatters, ``4 N h e (P-1)/P``.

    ``tokens`` = N of the whole sequence. The volume does not shrink as ranks are added. Source: Korthikanti et al. 2022, §4.2.2.
    """
    p = np.asarray(ranks, float)
    return 4.0 * np.asarray(tokens, float) * hidden * element_bytes * (p - 1) / p


def ulysses(tokens: Floats, q_heads: Floats, kv_heads: Floats, head_dim: Floats, ranks: Floats, *, element_bytes: float = 2.0) -> Floats:
    """Ulysses, forward: all-to-alls of q, k, v and output, ``(N/P) e d (2 a + 2 max(g, P)) (P-1)/P``; KV heads replicated when g < P.

    Source: Jacobs et al. 2023 (DeepSpeed-Ulysses), §3.2; ``4 (N/P) h e (P-1)/P`` for multi-head attention.
    """
    p = np.asarray(ranks, float)
    width = 2.0 * np.asarray(q_heads, float) + 2.0 * np.maximum(kv_heads, p)
    return np.asarray(tokens, float) / p * element_bytes * head_dim * width * (p - 1) / p


def ring(tokens: Floats, kv_heads: Floats, head_dim: Floats, ranks: Floats, *, element_bytes: float = 2.0) -> Floats:
    """Ring attention, forward: P-1 hops of a K and a V block, ``2 (N/P) g d e (P-1)``. Source: Liu et al. 2023, §3."""
    p = np.asarray(ranks, float)
    return 2.0 * np.asarray(tokens, float) / p * kv_heads * head_dim * element_bytes * (p - 1)


def all_gather_kv(tokens: Floats, kv_heads: Floats, head_dim: Floats, ranks: Floats, *, element_bytes: float = 2.0) -> Floats:
    """All-gather of K and V, forward: ``2 N g d e (P-1)/P``. Source: Llama 3 report, §3.3.2."""
    p = np.asarray(ranks, float)
    return 2.0 * np.asarray(tokens, float) * kv_heads * head_dim * element_bytes * (p - 1) / p


def token_ring(tokens: Floats, q_heads: Floats, head_dim: Floats, ranks: Floats, *, element_bytes: float = 2.0) -> Floats:
    """TokenRing, forward, in each direction of the link: queries one way, outputs with their statistics the other.

    ``(P-1) (N/P) (a d e + 4 a)``: the heavier direction, outputs and one fp32 log-sum-exp a head. Source: Wang et al. 2024, §3.
    """
    p = np.asarray(ranks, float)
    return (p - 1) * np.asarray(tokens, float) / p * np.asarray(q_heads, float) * (np.asarray(head_dim) * element_bytes + 4.0)


def linear_state(batch: Floats, heads: Floats, key_dim: Floats, value_dim: Floats, *, element_bytes: float = 2.0) -> Floats:
    """State of one layer of linear attention, ``b H d_k d_v e``: what LASP-2 gathers from every rank and ZeCO scans through them once."""
    return np.asarray(batch, float) * heads * key_dim * value_dim * element_bytes


def megatron_step(tokens: Floats, hidden: Floats, *, recompute: bool, element_bytes: float = 2.0) -> Floats:
    """Megatron TP+SP, one layer's training step in the limit of many ranks: ``(4 + 6 [+ 4]) N h e``.

    Forward 4 passes; backward their duals and 2 gathers of the inputs for weight gradients; the recomputed forward 4 more.
    Source: Li et al. 2023 (LightSeq), §3.4: 14 N d.
    """
    return (14.0 if recompute else 10.0) * np.asarray(tokens, float) * hidden * element_bytes


def dist_attention_step(tokens: Floats, kv_width: Floats, *, element_bytes: float = 2.0) -> Floats:
    """DistFlashAttn, one layer's training step in the limit of many ranks: ``3 N d e``, keys and values ``kv_width`` = d wide each.

    Causal halving leaves each rank half of the 2 N d of keys and values in forward, and in backward the same again with as many
    gradients; the checkpoint sits behind attention, so nothing is fetched for recomputation. Source: Li et al. 2023 (LightSeq), §3.4.
    """
    return 3.0 * np.asarray(tokens, float) * kv_width * element_bytes
