"""Tokens or key channels leave the cache for good: a budget of tokens, or a share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..step import Stage, Step

STAGE = Stage.READ


def kv_eviction(
    step: Step,
    *,
    budget_tokens: int = 0,
    window_tokens: int = 0,
    keep_frac: float = 1.0,
    key_channel_frac: float = 1.0,
    every_step: bool = True,
) -> Step:
    """Cache kept: ``min(N, budget + window)`` tokens, or ``keep · N``; keys keep ``key_channel_frac`` c of their channels:
    ``(1 + c)/2`` bytes.

    Decode reads and holds what is kept. A prefill computes all its attention; it holds the whole cache until its end unless evicting goes
    on during it (``every_step``). Source: H2O (2023); SnapKV (2024); ThinK (2024).
    """
    n = np.asarray(step.kv_tokens, float)
    tokens = np.minimum(1.0, (budget_tokens + window_tokens) / n) if budget_tokens else np.full_like(n, keep_frac)
    kept = tokens * (1.0 + key_channel_frac) / 2.0
    if step.kind != "decode":
        return replace(step, held_kv_bytes=step.held_kv_bytes * (kept if every_step else 1.0))
    return replace(
        step, kv_bytes=step.kv_bytes * kept, held_kv_bytes=step.held_kv_bytes * kept, attention_flops=step.attention_flops * tokens
    )
