"""The price of attention: exact causal pairs, diagonal waste, the longest tile, cache traffic; prefill, decode and backward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..scenarios.hardware import Accelerator
from .arrays import Array, Reals, as_floats, soft_max

TILE = 128.0
"""Query rows of one thread block in the flash kernels measured."""


def causal_pairs(q_tokens: Reals, kv_tokens: Reals, window_tokens: Reals = 0) -> Array:
    """Query-key pairs when the last ``q`` of ``kv`` tokens attend to themselves and to what came before, at most ``window`` keys each.

    ``Σ_{c=kv−q+1..kv} min(c, window)``; window 0 means no window. Shapes broadcast.
    """
    q, kv, window = as_floats(q_tokens, kv_tokens, window_tokens)
    w = np.where(window > 0, np.minimum(window, kv), kv)
    return _capped_sum(kv, w) - _capped_sum(np.maximum(kv - q, 0), w)


def _capped_sum(c: Array, w: Array) -> Array:
    low = np.minimum(c, w)
    return low * (low + 1) / 2 + (c - low) * w


def attention_pairs(q_tokens: Reals, kv_tokens: Reals, causal: bool, window_tokens: Reals) -> Array:
    """Pairs of one sequence and head: causal (see ``causal_pairs``) or all ``q·min(kv, window)``."""
    if causal:
        return causal_pairs(q_tokens, kv_tokens, window_tokens)
    q, kv, window = as_floats(q_tokens, kv_tokens, window_tokens)
    return q * np.where(window > 0, np.minimum(window, kv), kv)


def attention_floor_s(
    pairs: Array, batch: Array, q: Array, kv: Array, heads: Array, kv_heads: Array, qk: Array, v: Array, peak: float, gpu: Accelerator, kv_bytes: float
) -> Array:
    """Seconds no kernel can beat: ``max(2·b·h·pairs·(qk+v)/peak, (Q + O + K + V bytes)/bandwidth)``."""
    flops = 2 * batch * heads * pairs * (qk + v)
    moved = batch * (2 * q * heads * (qk + v) + kv_bytes * kv * kv_heads * (qk + v))
    return np.maximum(flops / peak, moved / gpu.hbm_bytes_per_s)


def prefill_trend_s(
    pairs: Array, batch: Array, q: Array, span: Array, heads: Array, kv_heads: Array, qk: Array, v: Array, peak: float, gpu: Accelerator, c: Mapping[str, float]
) -> Array:
    """Seconds of a flash forward: ``launch + softmax(compute, memory)``.

    Compute is all tiles spread over the SMs and the one longest tile alone on an SM, joined as ``√(total² + longest²)``; ``span`` is
    the most keys one query sees; the diagonal tiles are computed whole.
    """
    width = (qk + v) * (1 + c["small_head"] * 64 / np.maximum(v, 1))
    total = 2 * batch * heads * (pairs + q * TILE / 2) * width
    longest = 2 * TILE * np.maximum(span, TILE) * width * gpu.n_sms
    compute = np.sqrt(total**2 + longest**2) / (peak * c["compute_frac"])
    moved = batch * q * (2 * heads * (qk + v) + 4 * kv_heads * (qk + v)) + batch * np.maximum(span - q, 0) * 2 * kv_heads * (qk + v)
    return c["launch_s"] + soft_max(compute, moved / (gpu.hbm_bytes_per_s * c["memory_frac"]), c["sharpness"])


def decode_trend_s(
    batch: Array, span: Array, heads: Array, kv_heads: Array, qk: Array, v: Array, peak: float, gpu: Accelerator, kv_bytes: float, c: Mapping[str, float]
) -> Array:
    """Seconds of one new token per sequence: ``launch + waves·wave_s + softmax(compute, memory, span·per_key_s)``.

    Memory is the KV cache once; compute packs the query heads of a group into 16 rows; waves count (sequence, KV head) pairs over SMs.
    """
    moved = batch * span * kv_heads * (qk + v) * kv_bytes + batch * heads * (qk + v) * 2
    rows = np.ceil(heads / kv_heads / 16) * 16
    compute = 2 * batch * kv_heads * rows * span * (qk + v) / (peak * c["compute_frac"])
    memory = soft_max(moved / (gpu.hbm_bytes_per_s * c["memory_frac"]), span * c["per_key_s"], c["sharpness"])
    return c["launch_s"] + c["wave_s"] * np.ceil(batch * kv_heads / gpu.n_sms) + soft_max(compute, memory, c["sharpness"])
