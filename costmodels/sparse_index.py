"""DeepSeek sparse attention (DSA): an indexer scores every cached token, attention over latents sees the best ``index_top_k`` of them.

Index keys are cached in 8 bits with a 32-bit scale per 128 elements; the indexer is replicated over tensor-parallel ranks.
Source: DeepSeek-V3.2-Exp (2025), section 2 and its inference/model.py (class Indexer); DeepGEMM's fp8_mqa_logits.
"""

from __future__ import annotations

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from .arrays import Array
from .attention_curve import causal_pairs
from .lookup import attention_keys
from .roofline import Roofline

LOGIT_BYTES = 8.0
"""Bytes a score moves: written once in 32 bits and read once by the selection."""
HEAD_TILE = 64
"""Query heads that the public sparse kernels multiply at once: FlashMLA pads fewer up to it."""


def index_params(model: ModelSpec) -> int:
    """Indexer parameters of one layer: its queries from the low rank (or the hidden state), one key, a norm, a weight a head."""
    if not model.index_top_k:
        return 0
    queries = (model.q_lora_rank or model.hidden) * model.index_heads * model.index_dim
    return queries + model.hidden * (model.index_dim + model.index_heads) + 2 * model.index_dim


def index_bytes(model: ModelSpec) -> float:
    """Bytes of one token's index key in one layer, ``d + 4·d/128``; 0 without an indexer."""
    return model.index_dim * (1 + 4 / 128) if model.index_top_k else 0.0


def index_decode_s(model: ModelSpec, roofline: Roofline, batch: Array, kv_tokens: Array) -> Array:
    """Seconds of one layer's scores and selection for one new token in each of ``batch`` sequences of ``kv_tokens``.

    ``launch + max(2·b·kv·heads·dim/peak, b·kv·(key bytes)/bandwidth)`` at the fractions of both that the measured latent kernel (family
    ``mla.decode``) reaches, which reads one narrow head for all query heads as this does; the scores' own traffic is a stream.
    """
    c = roofline.calibration.fit("mla.decode").coefficients
    scored = batch * kv_tokens
    compute = 2 * scored * model.index_heads * model.index_dim / (_index_peak(roofline) * c["compute_frac"])
    memory = scored * index_bytes(model) / (roofline.gpu.hbm_bytes_per_s * c["memory_frac"])
    return c["launch_s"] + np.maximum(compute, memory) + roofline.stream_s(LOGIT_BYTES * scored)


def index_prefill_s(model: ModelSpec, roofline: Roofline, q: Array, kv_tokens: Array) -> Array:
    """Seconds of one layer's scores and selection when the last ``q`` of ``kv_tokens`` ask.

    ``2·pairs·heads·dim`` FLOPs at the part of peak that the measured flash prefill of this head width reaches, and the scores' stream.
    """
    c = roofline.calibration.fit(
        *attention_keys("prefill", model.index_dim, model.index_dim, 0, "bf16", roofline.calibration.families)
    ).coefficients
    pairs = causal_pairs(q, kv_tokens)
    compute = 2 * pairs * model.index_heads * model.index_dim / (_index_peak(roofline) * c["compute_frac"])
    return c["launch_s"] + compute + roofline.stream_s(LOGIT_BYTES * pairs)


def sparse_prefill_s(model: ModelSpec, roofline: Roofline, q: Array, kv_tokens: Array, heads: int, element_bytes: float) -> Array:
    """Seconds of one layer's attention of ``q`` tokens over ``index_top_k`` selected latents each, by a kernel that always takes so many.

    ``launch + max(2·q·k·heads·(2c + d_rope)/peak, bytes/bandwidth)``; heads round up to HEAD_TILE. Selected latents come from L2
    as far as it holds the cache, ``min(1, L2/cache)``, the others from HBM, and the cache is read once. Fractions of peak and bandwidth
    are those of the measured latent kernel (family ``mla.decode``), whose products these are.
    """
    c, latent = roofline.calibration.fit("mla.decode").coefficients, model.kv_lora_rank + model.rope_head_dim
    rows = -(-heads // HEAD_TILE) * HEAD_TILE
    selected = q * model.index_top_k
    compute = 2 * selected * rows * (latent + model.kv_lora_rank) / (roofline.gpu.peak_flops_per_s("bf16") * c["compute_frac"])
    cache = np.maximum(kv_tokens * latent * element_bytes, 1.0)
    missed = 1 - np.minimum(roofline.gpu.l2_bytes / cache, 1.0)
    moved = selected * latent * element_bytes * missed + cache
    out: Array = c["launch_s"] + np.maximum(compute, moved / (roofline.gpu.hbm_bytes_per_s * c["memory_frac"]))
    return out


def _index_peak(roofline: Roofline) -> float:
    """Rate of the scores' arithmetic: 8-bit where the card multiplies them, else 16-bit."""
    try:
        return roofline.gpu.peak_flops_per_s("fp8")
    except BadInput:
        return roofline.gpu.peak_flops_per_s("bf16")
