"""Counts a model's parameters by part, exactly as its checkpoint holds them."""

from __future__ import annotations

from dataclasses import dataclass

from ..scenarios.model import ModelSpec
from .linear_layer import linear_layer_params
from .sparse_index import index_params


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamCount:
    """Parameters by part. ``*_per_layer`` are for one layer of that kind; 0 where the model has no such layer.

    ``expert`` is one routed expert, ``moe_ffn_per_layer`` all routed experts, the shared ones and the router.
    ``norm_per_layer`` are the norms over ``hidden``; those inside attention (``qk_norm``, MLA's) count in ``attn_per_layer``, as does
    the indexer of DSA (``index_per_layer`` of them). ``linear_per_layer`` is the mixer of a layer with a recurrent state.
    ``total`` and ``active`` are the main model, embeddings included; ``mtp`` are the multi-token-prediction layers beside it.
    """

    embedding: int
    positions: int
    head: int
    attn_per_layer: int
    index_per_layer: int
    linear_per_layer: int
    n_linear_layers: int
    dense_ffn_per_layer: int
    moe_ffn_per_layer: int
    expert: int
    shared_per_layer: int
    router_per_layer: int
    norm_per_layer: int
    final_norm: int
    n_dense_ffn_layers: int
    n_moe_layers: int
    mtp: int
    total: int
    active: int

    def mixers(self, n_layers: int) -> int:
        """Attention and linear mixers of all ``n_layers`` layers."""
        return (n_layers - self.n_linear_layers) * self.attn_per_layer + self.n_linear_layers * self.linear_per_layer


def count_params(model: ModelSpec) -> ParamCount:
    """Parameter counts of ``model``, by part.

    ``total = embedding + positions + head + final_norm + sum over layers of (attention + FFN + norms)``; ``active`` counts
    ``top_k`` of the ``n_experts`` routed experts of each MoE layer. A tied head counts once, as ``embedding``. Left out (below
    0.01 % of any known model): attention sinks, router score biases, the norm after BLOOM's embedding, a bias of the head.
    """
    h, n_moe = model.hidden, model.n_moe_layers
    n_dense = model.n_layers - n_moe
    norm = h * (2 if model.norm == "layernorm" else 1)
    index = index_params(model)
    attn = (_mla(model) if model.is_mla else _attention(model)) + index
    linear, n_linear = linear_layer_params(model), model.n_linear_layers
    expert = _ffn(model, model.moe_ffn_hidden) if n_moe else 0
    shared = _ffn(model, model.shared_hidden) + h * model.shared_expert_gate if n_moe and model.shared_hidden else 0
    router = model.n_experts * (h + int(model.linear_bias)) if n_moe else 0
    moe_ffn = model.n_experts * expert + shared + router if n_moe else 0
    dense_ffn = _ffn(model, model.ffn_hidden) if n_dense else 0
    norm_per_layer = model.norms_per_layer * norm
    embedding = model.vocab * h
    positions = model.max_seq_tokens * h if model.position == "learned" else 0
    head = 0 if model.tied_embeddings else embedding
    mixers = (model.n_layers - n_linear) * attn + n_linear * linear
    total = embedding + positions + head + norm + mixers + model.n_layers * norm_per_layer + n_moe * moe_ffn + n_dense * dense_ffn
    mtp_layer = attn + norm_per_layer + (moe_ffn or dense_ffn) + 2 * h * h + 3 * norm
    return ParamCount(
        embedding=embedding,
        positions=positions,
        head=head,
        attn_per_layer=attn,
        index_per_layer=index,
        linear_per_layer=linear,
        n_linear_layers=n_linear,
        dense_ffn_per_layer=dense_ffn,
        moe_ffn_per_layer=moe_ffn,
        expert=expert,
        shared_per_layer=shared,
        router_per_layer=router,
        norm_per_layer=norm_per_layer,
        final_norm=norm,
        n_dense_ffn_layers=n_dense,
        n_moe_layers=n_moe,
        mtp=model.n_mtp_layers * mtp_layer,
        total=total,
        active=total - n_moe * (model.n_experts - model.top_k) * expert,
    )


def layer_params(model: ModelSpec) -> tuple[int, ...]:
    """Parameters of each layer in order: attention or linear mixer, norms and its FFN (dense or MoE, all experts). Shape: ``n_layers``."""
    count = count_params(model)
    linear = [model.linear_attention and not model.is_full_attention_layer(i) for i in range(model.n_layers)]
    mixers = (count.linear_per_layer if is_linear else count.attn_per_layer for is_linear in linear)
    ffns = (count.moe_ffn_per_layer if model.is_moe_layer(i) else count.dense_ffn_per_layer for i in range(model.n_layers))
    return tuple(mixer + ffn + count.norm_per_layer for mixer, ffn in zip(mixers, ffns, strict=True))


def _attention(model: ModelSpec) -> int:
    """Query, key, value and output projections, their biases, and norms of query and key heads; queries may pass a low rank (MFA), outputs
    a gate.
    """
    q, k, v = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim, model.n_kv_heads * model.v_dim
    out = model.n_heads * model.v_dim
    bias = q + k + v if model.qkv_bias or model.linear_bias else 0
    out_bias = model.hidden if model.linear_bias else 0
    low = model.q_lora_rank
    query = low * (model.hidden + 1 + q) if low else model.hidden * q
    gate = model.hidden * out if model.output_gate else 0
    return query + gate + model.hidden * (k + v + out) + bias + out_bias + (2 * model.head_dim if model.qk_norm else 0)


def _mla(model: ModelSpec) -> int:
    """Multi-head latent attention: down- and up-projections of query and key-value, their norms, and the output.

    Source: DeepSeek-V2, section 2.1 and appendix C.
    """
    h, heads = model.hidden, model.n_heads
    q_out = heads * model.qk_dim
    query = h * model.q_lora_rank + model.q_lora_rank + model.q_lora_rank * q_out if model.q_lora_rank else h * q_out
    down = h * (model.kv_lora_rank + model.rope_head_dim) + model.kv_lora_rank
    up = model.kv_lora_rank * heads * (model.head_dim + model.v_dim)
    return query + down + up + heads * model.v_dim * h


def _ffn(model: ModelSpec, width: int) -> int:
    """Two matrices and their biases, three when gated."""
    n_in = 2 if model.gated_mlp else 1
    return (n_in + 1) * model.hidden * width + (n_in * width + model.hidden if model.linear_bias else 0)
