"""Bytes of cached keys and values per token."""

from __future__ import annotations

from ..scenarios.model import ModelSpec
from .sparse_index import index_bytes


def kv_bytes_per_token(model: ModelSpec, *, element_bytes: float = 2.0) -> float:
    """Cache of one token over all layers: ``2 L g d e``; under MLA the latent and the shared rope key, ``L (c + d_rope) e``.

    Windowed layers are counted in full: this is the cost of a token while it is in the window. Layers with recurrent states cache
    nothing; DSA caches an index key besides.
    Source: DeepSeek-V3 insights (2025), table 1.
    """
    width = model.kv_lora_rank + model.rope_head_dim if model.is_mla else model.n_kv_heads * (model.qk_dim + model.v_dim)
    return (model.n_layers - model.n_linear_layers) * (width * element_bytes + index_bytes(model))
