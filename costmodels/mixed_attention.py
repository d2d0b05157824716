"""The price of decodes that share one variable-length attention call with prompt chunks, as FlashAttention-2 runs them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..scenarios.calibration import Calibration
from ..scenarios.hardware import Accelerator
from .arrays import Array, Reals, as_floats, soft_max
from .attention_curve import KV_HEADS_AXIS, AttentionWork, attention_floor_s, attention_work, decode_coordinates
from .gemm_curve import weight_bytes
from .lookup import attention_keys
from .roofline import Roofline

ROWS = 64.0
"""Query rows of one thread block of the paged variable-length kernel."""
L2_POWER = 4
"""How sharply reuse ends once a KV head's cache outgrows its share of L2."""


def mixed_trend_s(a: AttentionWork, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds of one new token per sequence inside a call that also holds prompt chunks: ``launch + softmax(compute, memory)``.

    Such a call does not split the cache, nor pack the heads of a group: each query head of each sequence is a thread block of ROWS rows, of
    which one is used, that walks all its keys (``+ fill_keys`` to start and end), ``waves = ceil(batch·heads/SMs)`` blocks an SM. Blocks
    start a head at a time over all sequences. Where one KV head's cache over the batch outgrows ``l2_frac`` of L2, the heads of a group
    read it again, but for the ``SMs/batch`` of them that run at the same time.
    """
    waves = np.ceil(a.batch * a.heads * (1 / gpu.n_sms))
    block_s = 2 * ROWS * (a.qk + a.v) * (a.span + c["fill_keys"]) * (gpu.n_sms / (a.peak_flops_per_s * c["compute_frac"]))
    cache = a.batch * a.span * a.kv_width * a.kv_bytes
    full = (cache * (1 / (gpu.l2_bytes * c["l2_frac"]))) ** L2_POWER
    group = a.heads / a.kv_heads
    again = np.maximum(group / np.clip(gpu.n_sms / a.batch, 1, group) - 1, 0) * (full / (1 + full))
    memory = cache * a.kv_heads * (1 + again) * (1 / (gpu.hbm_bytes_per_s * c["memory_frac"]))
    return c["launch_s"] + soft_max(waves * block_s, memory, c["sharpness"])


def idle_blocks(batch: Reals, heads: Reals, chunk: Reals) -> Array:
    """Thread blocks that find nothing to do: every sequence and head gets as many as the longest chunk needs, ``ceil(chunk/ROWS)``."""
    b, h, q = as_floats(batch, heads, chunk)
    return b * h * (np.ceil(q * (1 / ROWS)) - 1)


def is_measured(calibration: Calibration) -> bool:
    """Whether calls that hold prompts and decodes were measured on this card (families ``attention.mixed.*``)."""
    return any(key.startswith("attention.mixed.") for key in calibration.families)


def mixed_decode_s(
    roofline: Roofline,
    *,
    batch: Reals,
    kv_tokens: Reals,
    n_heads: Reals,
    n_kv_heads: Reals,
    head_dim: float,
    chunk_tokens: Reals,
    window_tokens: Reals = 0,
    kv_dtype: str = "bf16",
) -> Array:
    """Seconds that ``batch`` decodes add to a prompt chunk in one call of one layer, its launch included; never under the cache's floor.

    UnknownName where no such call was measured.
    """
    gpu, calibration = roofline.gpu, roofline.calibration
    (key,) = attention_keys("mixed", head_dim, head_dim, 0, kv_dtype, calibration.families)
    c, correct = calibration.fit(key).coefficients, roofline.curve(key)
    work = attention_work(
        batch=batch, q=1, kv=kv_tokens, heads=n_heads, kv_heads=n_kv_heads, qk=head_dim, v=head_dim, causal=True, window=window_tokens,
        kv_bytes=weight_bytes(kv_dtype), peak=gpu.peak_flops_per_s("bf16"),
    )  # fmt: skip
    price = mixed_trend_s(work, gpu, c) + c["idle_s"] * idle_blocks(batch, n_heads, chunk_tokens)
    if correct is not None:
        at = decode_coordinates(work, correct.last(KV_HEADS_AXIS))
        price = price * np.exp(correct.log_factor(*(np.maximum(x, 1) for x in at)))
    return np.maximum(price, attention_floor_s(work, gpu))


def idle_block_s(calibration: Calibration) -> float:
    """Seconds of a thread block of such a call that finds nothing to do."""
    return calibration.fit(*attention_keys("mixed", 128, 128, 0, "bf16", calibration.families)).coefficients["idle_s"]


def key_s(calibration: Calibration) -> float:
    """Seconds that a thread block of such a call takes for one cached token while its SM is full; 0 where that was not measured.

    Blocks start in an order that knows nothing of their lengths, and no cache is split: the call ends when the longest sequence does, on
    average ``(longest − mean)`` tokens after one of equal lengths would.
    """
    found = [fit for key, fit in calibration.families.items() if key.startswith("attention.uneven.")]
    return found[0].coefficients["key_s"] if found else 0.0
