"""A training sequence runs chunk by chunk: only one chunk's graph is alive, its past is a cache of keys and values with gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..step import Stage, Step, kv_cache_bytes, require_positive

STAGE = Stage.READ


def chunked_training(step: Step, *, chunk_tokens: int, backward_frac: float = 1.0) -> Step:
    """Activations of one chunk, ``C/N``; the past as cache in 2 bytes with gradients in 4, ``3 KV``.

    FLOPs with the forward that builds no graph, ``(1 + 3 b)/3``: ``backward_frac`` b is the share of chunks that are back-propagated.
    Source: SeCO and SpaCO (2025).
    """
    require_positive("chunked_training", chunk_tokens=chunk_tokens)
    if step.kind != "train":
        return step
    n = np.asarray(step.kv_tokens, float)
    part = np.minimum(1.0, chunk_tokens / n)
    work = (1.0 + 3.0 * backward_frac) / 3.0
    return replace(
        step, held_activation_bytes=step.held_activation_bytes * part, linear_flops=step.linear_flops * work,
        held_kv_bytes=step.held_kv_bytes + 3.0 * kv_cache_bytes(step.model, n) * step.n_seqs, attention_flops=step.attention_flops * work,
    )  # fmt: skip
