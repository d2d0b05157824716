"""Decode attention of many query heads over one cached head (multi-matrix factorised attention), by a kernel made for it."""

from __future__ import annotations

import numpy as np

from .arrays import Array, as_floats
from .attention_curve import attention_floor_s, attention_work, decode_trend_s
from .roofline import Roofline
from .serving_memory import KV_BYTES


def wide_decode_s(roofline: Roofline, batch: Array, kv_tokens: Array, heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> Array:
    """Seconds of one layer for one new token in each of ``batch`` sequences.

    Keys and values are read once for all heads, as latents are, so the kernel comes as near to its bounds as the measured 16-bit latent
    kernel (family ``mla.decode``); an 8-bit cache moves half the bytes. Generic kernels for head dimension 256 are measured at small
    groups and would be several times slower; Step-3's authors wrote their own. Source: Step-3 (2025), section 4 and appendix.
    """
    b, kv = as_floats(batch, kv_tokens)
    peak = roofline.gpu.peak_flops_per_s("bf16")
    work = attention_work(
        batch=b, q=np.ones_like(kv), kv=kv, heads=heads, kv_heads=kv_heads, qk=head_dim, v=head_dim, causal=True, window=0,
        kv_bytes=KV_BYTES[kv_dtype], peak=peak,
    )  # fmt: skip
    price = decode_trend_s(work, roofline.gpu, roofline.calibration.fit("mla.decode").coefficients)
    return np.maximum(price, attention_floor_s(work, roofline.gpu))
