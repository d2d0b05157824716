"""A language model as numbers: what a transformer's shape is, nothing about how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Shape of a decoder-only transformer; every count is for the whole model, unsharded.

    ``n_experts = 0`` is dense. MLA is on when ``kv_lora_rank > 0``; then ``head_dim`` is the query-key dim of the
    non-rope part. Layers ``0 .. n_dense_layers-1`` of an MoE model use the dense FFN, and of the rest every
    ``moe_every``-th is MoE. ``window_tokens > 0``: every layer but each ``full_attention_every``-th sees only that window
    (``full_attention_every = 0``: no layer is full). Raises BadInput when the numbers cannot be a model.
    """

    name: str
    source: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_hidden: int
    vocab: int
    gated_mlp: bool = True
    tied_embeddings: bool = False
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    linear_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    max_seq_tokens: int = 8192
    window_tokens: int = 0
    full_attention_every: int = 0
    n_experts: int = 0
    top_k: int = 0
    moe_ffn_hidden: int = 0
    n_shared_experts: int = 0
    shared_ffn_hidden: int = 0
    n_dense_layers: int = 0
    moe_every: int = 1
    n_expert_groups: int = 0
    top_k_groups: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_head_dim: int = 0
    v_head_dim: int = 0
    n_mtp_layers: int = 0
    hf_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    published_params: float = 0.0
    published_active_params: float = 0.0

    def __post_init__(self) -> None:
        for field in ("n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "vocab", "max_seq_tokens"):
            if getattr(self, field) < 1:
                raise BadInput(f"{field}={getattr(self, field)} of {self.name} must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise BadInput(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads} of {self.name}")
        if self.n_experts and not (1 <= self.top_k <= self.n_experts and self.moe_ffn_hidden >= 1):
            raise BadInput(
                f"top_k={self.top_k}, moe_ffn_hidden={self.moe_ffn_hidden} of {self.name}: an MoE model with "
                f"n_experts={self.n_experts} needs 1 <= top_k <= n_experts and moe_ffn_hidden >= 1"
            )
        if self.ffn_hidden < 1 and self.n_moe_layers < self.n_layers:
            raise BadInput(f"ffn_hidden={self.ffn_hidden} of {self.name} must be at least 1: it has dense layers")

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank > 0

    @property
    def qk_dim(self) -> int:
        """Dim of one head's query and key: ``head_dim`` (+ ``rope_head_dim`` under MLA)."""
        return self.head_dim + (self.rope_head_dim if self.is_mla else 0)

    @property
    def v_dim(self) -> int:
        """Dim of one head's value."""
        return self.v_head_dim or self.head_dim

    @property
    def n_moe_layers(self) -> int:
        """How many layers are MoE."""
        return max(0, self.n_layers - self.n_dense_layers) // max(1, self.moe_every) if self.n_experts else 0

    @property
    def n_full_attention_layers(self) -> int:
        """How many layers attend to the whole context."""
        if not self.window_tokens:
            return self.n_layers
        return self.n_layers // self.full_attention_every if self.full_attention_every else 0

    @property
    def shared_hidden(self) -> int:
        """FFN width of all shared experts together (0: none)."""
        return self.n_shared_experts * (self.shared_ffn_hidden or self.moe_ffn_hidden)
