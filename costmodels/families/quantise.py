"""Weights, cache or arithmetic in fewer bits."""

from __future__ import annotations

from dataclasses import replace

from ..step import Stage, Step, require_positive

STAGE = Stage.NUMBERS


def quantise(step: Step, *, weight_bits: float = 16.0, kv_bits: float = 16.0, dtype: str = "bf16") -> Step:
    """Bytes of weights and cache times ``bits/16`` (count scales in the bits: 4 bits with an 8-bit scale per 16 is 4.5).

    ``dtype`` is the arithmetic of the matmuls; its rate is the caller's (``rates(…, dtype=…)``), attention stays in 16 bits.
    """
    require_positive("quantise", weight_bits=weight_bits, kv_bits=kv_bits)
    w, kv = weight_bits / 16.0, kv_bits / 16.0
    return replace(
        step, dtype=dtype, weight_bytes=step.weight_bytes * w, held_weight_bytes=step.held_weight_bytes * w,
        kv_bytes=step.kv_bytes * kv, held_kv_bytes=step.held_kv_bytes * kv,
    )  # fmt: skip
