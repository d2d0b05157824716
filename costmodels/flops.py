"""Model FLOPs of a training step under each published convention, exact from the shape: no efficiency, no recomputation."""

from __future__ import annotations

import numpy as np

from ..scenarios.model import ModelSpec
from .attention_curve import causal_pairs
from .linear_layer import prompt_flops
from .op import Attention, Floats, attended_pairs
from .params import count_params


def linear_flops_per_token(model: ModelSpec) -> float:
    """Forward FLOPs of all matmuls a token passes: 2 x (active parameters without embeddings + LM head)."""
    count = count_params(model)
    head = model.vocab * model.hidden
    active = count.active - count.embedding - count.positions - count.head
    return 2.0 * (active + head)


def attention_flops(model: ModelSpec, seq_tokens: Floats, *, causal: bool = True) -> Floats:
    """Forward FLOPs of all attention cores for one sequence: 2 pairs heads (d_qk + d_v) per layer, windows honoured when causal.

    Recurrent states cost the same for every token. DSA scores all pairs and attends to the selected ones.
    """

    def layer(window: int) -> Floats:
        call = Attention(
            batch=1.0, q_tokens=seq_tokens, kv_tokens=seq_tokens, n_heads=model.n_heads, n_kv_heads=model.n_kv_heads,
            qk_dim=model.qk_dim, v_dim=model.v_dim, causal=causal, window_tokens=window,
        )  # fmt: skip
        return 2.0 * model.n_heads * attended_pairs(call) * (model.qk_dim + model.v_dim)

    full = model.n_full_attention_layers
    states = model.n_linear_layers * prompt_flops(model) * np.asarray(seq_tokens, float)
    index = 2.0 * full * model.index_heads * model.index_dim * causal_pairs(seq_tokens, seq_tokens) if model.index_top_k else 0.0
    return full * layer(model.index_top_k) + model.n_window_layers * layer(model.window_tokens) + states + index


def train_flops(model: ModelSpec, seq_tokens: Floats, global_batch: Floats, *, convention: str = "causal") -> Floats:
    """Model FLOPs of one step over all GPUs: 3 x forward. ``convention``: ``causal`` halves attention,
    ``noncausal`` does not, ``linear`` leaves attention out.

    Source: Chowdhery et al. 2022 (PaLM), appendix B; Korthikanti et al. 2022, appendix A counts attention in full.
    """
    linear = linear_flops_per_token(model) * np.asarray(seq_tokens, float)
    attention: Floats = (
        0.0 if convention == "linear" else attention_flops(model, np.asarray(seq_tokens, float), causal=convention == "causal")
    )
    return 3.0 * np.asarray(global_batch, float) * (linear + attention)
