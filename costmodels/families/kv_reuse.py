"""A prefill that finds part of its context's cache already computed, or computes its parts independently."""

from __future__ import annotations

from dataclasses import replace

from ..step import Stage, Step, require_positive

STAGE = Stage.CONTEXT


def kv_reuse(step: Step, *, hit_frac: float = 0.0, recompute_frac: float = 0.0, parts: int = 1, from_host: bool = False) -> Step:
    """Of the prompt, ``hit_frac`` is cached and ``recompute_frac`` of that is computed again; decode is unchanged.

    Linears: ``1 - h (1 - φ)`` of the prompt. Attention: the pairs inside the cached context, ``h²``, are saved but for φ of them.
    ``parts`` contexts encoded independently attend only to themselves: the context's pairs divide by their number.
    ``from_host``: the hit is loaded over the host link. Source: APE (2025); Cache-Craft (2025).
    """
    require_positive("kv_reuse", parts=parts)
    if step.kind != "prefill":
        return step
    h, again = hit_frac, recompute_frac
    inside = h * h if h else 1.0
    saved = inside * (1.0 - again) if h else 0.0
    pairs = 1.0 - saved if h else 1.0 / parts
    loaded = step.held_kv_bytes * h if from_host else 0.0
    return replace(
        step, q_tokens=step.q_tokens * (1.0 - h * (1.0 - again)), linear_flops=step.linear_flops * (1.0 - h * (1.0 - again)),
        attention_flops=step.attention_flops * pairs, host_bytes=step.host_bytes + loaded,
    )  # fmt: skip
