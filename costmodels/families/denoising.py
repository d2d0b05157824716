"""Several tokens of a block are decided in one pass over it, instead of one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..step import Stage, Step, require_positive, weights_read

STAGE = Stage.PASSES


def denoising(step: Step, *, tokens_per_pass: float, block_tokens: int = 0, cached: bool = True) -> Step:
    """A pass works on ``block_tokens`` and finishes ``tokens_per_pass`` of them; without a cache it works on the whole context again.

    ``T = N_out / TPF · T(block or context)``. Source: Fast-dLLM v2 (2025); LLaDA (2025) for the uncached form.
    """
    require_positive("denoising", tokens_per_pass=tokens_per_pass, block_tokens=block_tokens if cached else 1)
    if step.kind != "decode":
        return step
    width = float(block_tokens) if cached else np.asarray(step.kv_tokens, float)
    more = weights_read(step.model, np.asarray(step.n_seqs) * width) / weights_read(step.model, step.n_seqs)
    return replace(
        step, q_tokens=step.q_tokens * width, yield_tokens=step.yield_tokens * tokens_per_pass, linear_flops=step.linear_flops * width,
        attention_flops=step.attention_flops * width, weight_bytes=step.weight_bytes * more,
    )  # fmt: skip
