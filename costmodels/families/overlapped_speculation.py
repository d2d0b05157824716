"""A second device drafts the next tokens while the model checks the last ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..acceptance import overlapped_tokens
from ..step import Stage, Step, require_positive, weights_read

STAGE = Stage.PASSES


def overlapped_speculation(step: Step, *, acceptance: float, draft_tokens: int, draft_frac: float) -> Step:
    """A pass takes ``max(1, γ c)`` model steps and yields the mix of ``acceptance.overlapped_tokens``; c is a draft step over a model step.

    The draft occupies its own device: per GPU the gain halves when the draft's is as dear. Source: PEARL (2025).
    """
    require_positive("overlapped_speculation", draft_tokens=draft_tokens)
    if step.kind != "decode":
        return step
    more = weights_read(step.model, np.asarray(step.n_seqs) * draft_tokens) / weights_read(step.model, step.n_seqs)
    return replace(
        step, q_tokens=step.q_tokens * draft_tokens, yield_tokens=step.yield_tokens * overlapped_tokens(acceptance, draft_tokens),
        linear_flops=step.linear_flops * draft_tokens, attention_flops=step.attention_flops * draft_tokens,
        weight_bytes=step.weight_bytes * more, slow_frac=(1 + np.asarray(step.slow_frac)) * max(1.0, draft_tokens * draft_frac) - 1,
    )  # fmt: skip
