"""The model drafts for itself from a small part of its cache, and a small model drafts for that draft."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..acceptance import chain_tokens, tiered_draft_frac
from ..step import Stage, Step

STAGE = Stage.PASSES


def tiered_speculation(
    step: Step,
    *,
    budget_tokens: int,
    draft_tokens: int,
    acceptance: float,
    small_frac: float = 0.0,
    small_acceptance: float = 0.0,
    small_tokens: int = 0,
    overhead_frac: float = 0.0,
) -> Step:
    """The middle draft reads all weights but only ``budget_tokens`` of cache: ``c_mid = (W + KV budget/N) / (W + KV)`` of a step.

    With a small model before it, a middle token costs ``(c_mid + γ1 c_small)/E(α1, γ1)``; the pass yields ``E(α, γ)`` tokens in ``1 + γ c``
    steps. A cache on the host is read by the check alone. Source: TriForce (2024).
    """
    if step.kind != "decode":
        return step
    weights, cache = np.asarray(step.weight_bytes), np.asarray(step.kv_bytes)
    read = np.minimum(1.0, budget_tokens / np.asarray(step.kv_tokens, float))
    middle = float((weights + cache * read) / (weights + cache))
    frac = tiered_draft_frac(middle_frac=middle, small_frac=small_frac, middle_acceptance=small_acceptance, middle_tokens=small_tokens)
    drafting = draft_tokens * frac
    checked = draft_tokens + 1.0
    return replace(
        step, q_tokens=step.q_tokens * checked, yield_tokens=step.yield_tokens * chain_tokens(acceptance, draft_tokens),
        linear_flops=step.linear_flops * (checked + drafting), attention_flops=step.attention_flops * checked,
        weight_bytes=weights + drafting * (weights + cache), slow_frac=(1 + np.asarray(step.slow_frac)) * (1 + overhead_frac) - 1,
    )  # fmt: skip
