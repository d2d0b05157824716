"""A cheap guess at several tokens, checked by the model in one pass: chains, trees, heads, early exits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..acceptance import chain_tokens
from ..step import Stage, Step, weights_read

STAGE = Stage.PASSES


def speculation(
    step: Step,
    *,
    draft_tokens: int,
    acceptance: float = 0.0,
    tokens_per_pass: float = 0.0,
    draft_frac: float = 0.0,
    tree_tokens: int = 0,
    overhead_frac: float = 0.0,
) -> Step:
    """A pass yields ``E = (1 - α^(γ+1))/(1 - α)`` tokens (or a measured mean), checks ``γ + 1`` (or a tree of them), drafts γ before.

    ``draft_frac`` c is one draft step over one model step: the pass takes ``1 + γ c`` of its roofline, and ``overhead_frac`` on top.
    The cache is read once for all checked tokens; experts are read for all of them. Speed-up at batch 1: ``E / (1 + γ c)``.
    Source: Leviathan et al. 2023, theorem 3.8; Medusa (2024) for trees.
    """
    if step.kind != "decode":
        return step
    yielded = tokens_per_pass or chain_tokens(acceptance, draft_tokens)
    checked = float(tree_tokens or draft_tokens + 1)
    more = weights_read(step.model, np.asarray(step.n_seqs) * checked) / weights_read(step.model, step.n_seqs)
    return replace(
        step, q_tokens=step.q_tokens * checked, yield_tokens=step.yield_tokens * yielded, linear_flops=step.linear_flops * checked,
        attention_flops=step.attention_flops * checked, weight_bytes=step.weight_bytes * more,
        slow_frac=(1 + np.asarray(step.slow_frac)) * (1 + draft_tokens * draft_frac + overhead_frac) - 1,
    )  # fmt: skip
