"""A prompt runs in chunks (of tokens or of layers) and the decodes of other requests ride along."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..experts import expert_share_read
from ..params import count_params
from ..step import Stage, Step, require_positive, weights_total

STAGE = Stage.PASSES


def chunked_prefill(step: Step, *, chunk_tokens: int, by_layers: bool = False) -> Step:
    """A prompt of N in chunks of C: every chunk reads the weights its tokens need and the cache so far again: ``KV (1 + (N/C - 1)/2)``.

    ``by_layers``: as many groups of layers instead, each run once on the whole prompt, so that every weight is read once. Decodes are
    unchanged: they ride on weights that are read anyhow. Source: Sarathi (2023); Layered Prefill (2025).
    """
    require_positive("chunked_prefill", chunk_tokens=chunk_tokens)
    if step.kind != "prefill":
        return step
    n, model, p = np.asarray(step.q_tokens, float), step.model, count_params(step.model)
    chunks = np.ceil(n / chunk_tokens)
    routed = p.n_moe_layers * model.n_experts * p.expert / p.total if p.n_moe_layers else 0.0
    width = np.asarray(step.held_weight_bytes) / weights_total(model)
    whole = weights_total(model) * width
    share = (1 - routed + routed * expert_share_read(model.n_experts, model.top_k, chunk_tokens)) if routed else 1.0
    if by_layers:
        return replace(step, weight_bytes=whole, held_activation_bytes=step.held_activation_bytes)
    return replace(
        step, weight_bytes=whole * chunks * share, kv_bytes=step.held_kv_bytes * (1 + (chunks - 1) / 2),
        held_activation_bytes=np.asarray(step.held_activation_bytes) * np.minimum(1.0, chunk_tokens / n),
    )  # fmt: skip
