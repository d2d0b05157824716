"""Decode attention of kernels that read the cache once for each query head, whatever heads share it."""

from __future__ import annotations

import numpy as np

from ..scenarios.serving import ServingEngine
from .arrays import Array, as_floats
from .roofline import Roofline
from .serving_memory import KV_BYTES


def reads_per_head(engine: ServingEngine, heads: int, kv_heads: int) -> bool:
    """Whether an engine decodes heads grouped so by such a kernel: it has none that shares reads among so many."""
    return engine.per_head_elements > 0 and heads // kv_heads not in engine.shared_groups


def per_head_decode_s(
    roofline: Roofline, engine: ServingEngine, batch: Array, kv_tokens: Array, heads: int, kv_heads: int, width: float, kv_dtype: str
) -> Array:
    """Seconds of one layer for one new token in each of ``batch`` sequences; ``width`` elements of key and value a cached token and head.

    ``max(stream of the cache, batch·heads·kv·width / (e·clock·SMs))`` with ``e`` the engine's ``per_head_elements``. Heads of a group read
    the same bytes, from HBM once and from L2 after that, but each unpacks and multiplies them itself on the vector units. Where a sequence
    and head is one thread block (``unsplit_heads``), fewer of them than SMs leave SMs idle.
    """
    b, kv = as_floats(batch, kv_tokens)
    cache = roofline.stream_s(b * kv * kv_heads * width * KV_BYTES[kv_dtype])
    gpu, blocks = roofline.gpu, b * heads
    busy = np.clip(blocks, 1, gpu.n_sms) if engine.unsplit_heads else gpu.n_sms
    return np.maximum(cache, blocks * kv * width / (engine.per_head_elements * gpu.clock_hz * busy))
