"""The same task with fewer tokens: compressed prompts, shorter answers, skipped rollouts, sequences of mixed length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..step import Stage, Step

STAGE = Stage.CONTEXT


def fewer_tokens(step: Step, *, tokens_frac: float = 1.0, mean_tokens: int = 0, compressor_frac: float = 0.0) -> Step:
    """``tokens_frac`` of the context is left (linears, cache and activations ∝ frac, prefill attention ∝ frac²).

    ``mean_tokens`` instead keeps all tokens but in sequences of that attention-weighted mean length: attention ∝ mean/N, all else as it
    was. ``compressor_frac`` is the compressor's parameters over the model's: it reads the whole prompt first.
    Source: Dataset Decomposition (2024); LongCodeZip (2025).
    """
    f = tokens_frac
    if mean_tokens:
        return replace(step, attention_flops=step.attention_flops * np.minimum(1.0, mean_tokens / np.asarray(step.kv_tokens, float)))
    one_token = step.kind == "decode"
    return replace(
        step, kv_tokens=step.kv_tokens * f, kv_bytes=step.kv_bytes * f, held_kv_bytes=step.held_kv_bytes * f,
        q_tokens=step.q_tokens * (1.0 if one_token else f), linear_flops=step.linear_flops * ((1.0 if one_token else f) + compressor_frac),
        attention_flops=step.attention_flops * (f if one_token else f * f), held_activation_bytes=step.held_activation_bytes * f,
        weight_bytes=step.weight_bytes * (1.0 + compressor_frac),
    )  # fmt: skip
