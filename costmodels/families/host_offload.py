"""Cache or weights lie in host memory and pass through a small buffer on the device: exact, paid on the host link."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..step import Stage, Step, require_positive

STAGE = Stage.PLACE


def host_offload(
    step: Step, *, kv_frac: float = 0.0, weight_frac: float = 0.0, parts_per_layer: int = 1, buffers: int = 2, chunk_tokens: int = 0
) -> Step:
    """``kv_frac`` of the cache and ``weight_frac`` of the weights live on the host; a pass reads them through.

    Device cache: ``buffers · KV / (L · parts)``: one part of one layer's heads at work, the next on its way. Link, decode: the whole
    offloaded cache each step. Link, prefill in chunks of C: the earlier cache again for each chunk, ``KV (1 + N/(2C))``.
    Source: HeadInfer (2025); ZeRO-Inference (2022).
    """
    require_positive("host_offload", parts_per_layer=parts_per_layer)
    kv = np.asarray(step.held_kv_bytes) * kv_frac
    buffer = np.minimum(buffers * kv / (step.model.n_layers * parts_per_layer), kv)
    passes = 1.0
    if step.kind != "decode":
        chunk = np.asarray(chunk_tokens or step.q_tokens, float)
        passes = 1.0 + (np.asarray(step.q_tokens) / chunk - 1.0) / 2.0
    weights = np.asarray(step.weight_bytes) * weight_frac
    moved_weights = np.asarray(step.held_weight_bytes) * weight_frac
    return replace(
        step, held_kv_bytes=step.held_kv_bytes - kv + buffer, host_held_bytes=step.host_held_bytes + kv + moved_weights,
        held_weight_bytes=step.held_weight_bytes - moved_weights + np.minimum(moved_weights, buffers * moved_weights / step.model.n_layers),
        host_bytes=step.host_bytes + kv * passes + weights,
    )  # fmt: skip
