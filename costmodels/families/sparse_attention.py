"""A query attends to chosen keys only; every key stays in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ..step import Stage, Step, require_positive

STAGE = Stage.READ


def sparse_attention(
    step: Step,
    *,
    kept_tokens: int = 0,
    kept_frac: float = 1.0,
    dense_head_frac: float = 0.0,
    dense_layer_frac: float = 0.0,
    kernel_frac: float = 1.0,
    select_frac: float = 0.0,
    page_tokens: int = 0,
    when: Literal["prefill", "decode", "both"] = "prefill",
) -> Step:
    """Attention keeps ``ρ = d + (1-d) · min(1, kept/keys) / kernel_frac + select``, ``d`` the dense share of heads and layers.

    A prefill query sees ``N/2`` keys on average, a decode query N. ``kept_tokens`` counts keys a query pays for; ``kept_frac`` instead is a
    share of all pairs. ``kernel_frac`` is the sparse kernel's rate over the dense one's, ``select_frac`` the choice of blocks as a share
    of dense attention. In decode the same share of the cache is read, and one key of each page to choose it.
    Source: MInference (2024); LServe (2025).
    """
    require_positive("sparse_attention", kernel_frac=kernel_frac)
    if when != "both" and (step.kind == "decode") != (when == "decode"):
        return step
    keys = np.asarray(step.kv_tokens, float) / (1.0 if step.kind == "decode" else 2.0)
    kept = np.minimum(1.0, kept_tokens / keys) if kept_tokens else np.full_like(keys, kept_frac)
    dense = dense_layer_frac + (1.0 - dense_layer_frac) * dense_head_frac
    share = np.minimum(1.0, dense + (1.0 - dense) * kept / kernel_frac) + select_frac
    pages = step.kv_bytes / (2.0 * page_tokens) if page_tokens else 0.0
    read = dense + (1.0 - dense) * kept
    if step.kind != "decode":
        return replace(step, attention_flops=step.attention_flops * share)
    return replace(step, attention_flops=step.attention_flops * share, kv_bytes=step.kv_bytes * read, other_bytes=step.other_bytes + pages)
