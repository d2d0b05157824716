"""The price of attention: exact causal pairs, diagonal waste, the longest tile, cache traffic; prefill, decode and latent (MLA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    if not window.any():
        asked = np.minimum(q, kv)
        return asked * (kv - 0.5 * asked + 0.5)
    w = np.where(window > 0, np.minimum(window, kv), kv)
    return _capped_sum(kv, w) - _capped_sum(np.maximum(kv - q, 0), w)


def _capped_sum(c: Array, w: Array) -> Array:
    low = np.minimum(c, w)
    return low * (low + 1) / 2 + (c - low) * w


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """One attention call as arrays: ``batch`` sequences whose last ``q`` of ``kv`` tokens ask; ``pairs`` query-key pairs per head.

    ``span`` is the most keys one query sees, ``held`` the keys that must be read at all. ``qk`` and ``v`` are head dimensions,
    ``kv_width`` the cached elements per token and KV head (``qk + v``, or only ``qk`` for latents, whose values are their first
    ``v``), ``kv_bytes`` the bytes of one. ``peak_flops_per_s`` is that of the arithmetic. Not ``causal``: every query sees all keys.
    """

    batch: Array
    q: Array
    kv: Array
    pairs: Array
    span: Array
    held: Array
    heads: Array
    kv_heads: Array
    qk: Array
    v: Array
    kv_width: Array
    kv_bytes: Array
    peak_flops_per_s: float
    causal: bool = True


def attention_work(
    *,
    batch: Reals,
    q: Reals,
    kv: Reals,
    heads: Reals,
    kv_heads: Reals,
    qk: Reals,
    v: Reals,
    causal: bool,
    window: Reals,
    kv_bytes: Reals,
    peak: float,
) -> AttentionWork:
    """Derive pairs and reach from the call's own numbers (see AttentionWork); ``qk > v > 256`` means cached latents."""
    b, q, kv, h, g, qk, v, w, narrow = as_floats(batch, q, kv, heads, kv_heads, qk, v, window, kv_bytes)
    limited = np.where(w > 0, np.minimum(kv, w), kv) if w.any() else kv
    held = np.where(w > 0, np.minimum(kv, w + q - 1), kv) if w.any() else kv
    return AttentionWork(
        batch=b, q=q, kv=kv, pairs=causal_pairs(q, kv, w) if causal else q * limited, span=limited,
        held=held, heads=h, kv_heads=g, qk=qk, v=v,
        kv_width=np.where((qk > v) & (v > 256), qk, qk + v), kv_bytes=narrow, peak_flops_per_s=peak, causal=causal,
    )  # fmt: skip


def attention_floor_s(a: AttentionWork, gpu: Accelerator) -> Array:
    """Seconds no kernel can beat: ``max(2·b·h·pairs·(qk+v)/peak, (Q + O at 2 bytes + keys and values held)/bandwidth)``."""
    flops = 2 * a.batch * a.heads * a.pairs * (a.qk + a.v)
    moved = a.batch * (2 * a.q * a.heads * (a.qk + a.v) + a.kv_bytes * a.held * a.kv_heads * a.kv_width)
    return np.maximum(flops / a.peak_flops_per_s, moved / gpu.hbm_bytes_per_s)


def prefill_trend_s(a: AttentionWork, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds of a flash forward: ``launch + softmax(compute, memory)``.

    Compute is all tiles spread over the SMs and the one longest tile alone on an SM, joined as ``√(total² + longest²)``; the diagonal
    tiles are computed whole. Where short chunks after long pasts were measured (``fill_keys``) it is ``_blocks_s`` instead. Memory is
    Q, K, V, O and the cache write.
    """
    width = (a.qk + a.v) * (1 + c["small_head"] * 64 / np.maximum(a.v, 1))
    if "fill_keys" in c:
        compute = _blocks_s(a, gpu, c) * width / (a.qk + a.v)
    else:
        total = 2 * a.batch * a.heads * (a.pairs + a.q * (TILE / 2)) * width
        longest = (2 * TILE * gpu.n_sms) * np.minimum(np.maximum(a.span + TILE, TILE), np.maximum(a.kv, TILE)) * width
        compute = np.sqrt(total * total + longest * longest) / (a.peak_flops_per_s * c["compute_frac"])
    fresh = a.q * (2 * (a.heads + a.kv_heads) * (a.qk + a.v) + a.kv_bytes * a.kv_heads * a.kv_width)
    moved = a.batch * (fresh + np.maximum(a.held - a.q, 0) * a.kv_bytes * a.kv_heads * a.kv_width)
    return c["launch_s"] + soft_max(compute, moved / (gpu.hbm_bytes_per_s * c["memory_frac"]), c["sharpness"])


def _blocks_s(a: AttentionWork, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds of thread blocks of ``tile`` query rows, one on an SM at a time, each walking the keys before it (``+ fill_keys``).

    ``w = batch·heads·ceil(q/tile)/SMs`` blocks an SM run in ``ceil(w)`` waves over the past and ``w`` over the chunk's own triangle, no
    sooner than the longest block alone.
    """
    tile, fill = c["tile"], c["fill_keys"]
    blocks = a.batch * a.heads * np.ceil(a.q * (1 / tile)) * (1 / gpu.n_sms)
    own = np.minimum(a.q, a.span)
    keys = np.maximum(np.ceil(blocks) * (a.span - own + fill) + blocks * (own + tile) / 2, a.span + fill)
    out: Array = keys * (2 * tile * (a.qk + a.v) * gpu.n_sms / (a.peak_flops_per_s * c["compute_frac"]))
    return out


def decode_trend_s(a: AttentionWork, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds of one new token per sequence: ``launch + waves·wave_s + softmax(softmax(memory, latency), compute)``.

    Memory is the keys and values in reach once; compute packs the query heads of a group into 16 rows; latency is ``per_key_s`` a key,
    or ``serial_key_s`` a key and wave where each head has its own cache and the kernel does not split it.
    """
    moved = a.batch * (a.span * a.kv_heads * a.kv_width * a.kv_bytes + 2 * a.heads * (a.qk + a.v))
    rows = np.ceil(a.heads / a.kv_heads * (1 / 16)) * 16
    compute = 2 * a.batch * a.kv_heads * rows * a.span * (a.qk + a.v) / (a.peak_flops_per_s * c["compute_frac"])
    waves = np.ceil(a.batch * a.kv_heads * (1 / gpu.n_sms))
    latency = a.span * (c["per_key_s"] + c.get("serial_key_s", 0.0) * waves * (a.heads == a.kv_heads))
    memory = soft_max(moved / (gpu.hbm_bytes_per_s * c["memory_frac"]), latency, c["sharpness"])
    return c["launch_s"] + c["wave_s"] * waves + soft_max(compute, memory, c["sharpness"])


def prefill_coordinates(a: AttentionWork) -> tuple[Array, ...]:
    """Coordinates of the correction: length of the whole causal prefill with as many pairs, sequences, KV heads, group."""
    pairs = a.q * (2 * a.kv - a.q) if a.causal else 2 * a.q * a.kv
    return np.sqrt(np.maximum(pairs, 1)), a.batch, *_heads(a)


def decode_coordinates(a: AttentionWork, most_kv_heads: float = np.inf) -> tuple[Array, ...]:
    """Coordinates of the correction: cached tokens, sequences, KV heads, heads per KV head.

    A decode kernel works on ``batch·kv_heads`` caches of their own: KV heads beyond the ``most_kv_heads`` measured count as more sequences.
    """
    kv_heads, group = _heads(a)
    near = np.minimum(kv_heads, most_kv_heads)
    return a.kv, a.batch * (kv_heads / near), near, group


KV_HEADS_AXIS = 2
"""Which of the decode coordinates counts KV heads."""


def _heads(a: AttentionWork) -> tuple[Array, ...]:
    return a.kv_heads, a.heads / a.kv_heads
