"""A language model as numbers: what a transformer's shape is, nothing about how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import BadInput

_LIMITS = {
    "n_layers": (1, 10_000), "hidden": (1, 10**6), "n_heads": (1, 10**5), "n_kv_heads": (1, 10**5), "head_dim": (1, 10**5),
    "ffn_hidden": (0, 10**7), "vocab": (1, 10**8), "max_seq_tokens": (1, 10**9), "window_tokens": (0, 10**9),
    "full_attention_every": (0, 10_000), "norms_per_layer": (0, 16), "n_experts": (0, 10**5), "top_k": (0, 10**5),
    "moe_ffn_hidden": (0, 10**7), "n_shared_experts": (0, 10**4), "shared_ffn_hidden": (0, 10**7), "n_dense_layers": (0, 10_000),
    "moe_every": (1, 10_000), "n_expert_groups": (0, 10**5), "top_k_groups": (0, 10**5), "q_lora_rank": (0, 10**6),
    "kv_lora_rank": (0, 10**6), "rope_head_dim": (0, 10**5), "v_head_dim": (0, 10**5), "n_mtp_layers": (0, 100),
    "linear_heads": (0, 10**5), "linear_key_heads": (0, 10**5), "linear_key_dim": (0, 10**5), "linear_value_dim": (0, 10**5),
    "linear_conv_width": (0, 1000), "index_heads": (0, 10**5), "index_dim": (0, 10**5), "index_top_k": (0, 10**9),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Shape of a decoder-only transformer; every count is for the whole model, unsharded.

    ``n_experts = 0`` is dense. MLA is on when ``kv_lora_rank > 0``; then ``head_dim`` is the query-key dim of the
    non-rope part. Layers ``0 .. n_dense_layers-1`` of an MoE model use the dense FFN, and of the rest every
    ``moe_every``-th is MoE. ``window_tokens > 0``: every layer but each ``full_attention_every``-th sees only that window
    (``full_attention_every = 0``: no layer is full). With ``linear_attention`` those layers keep a recurrent state instead of a cache:
    ``linear_heads`` heads of ``linear_key_dim x linear_value_dim`` each, written by ``linear_key_heads`` heads of keys, behind a causal
    convolution over ``linear_conv_width`` tokens (0: none); ``last_layer_full`` makes the last layer full besides. ``output_gate``: a
    projection as wide as the heads' outputs gates full attention; ``shared_expert_gate``: one column gates the shared experts.
    ``index_top_k > 0`` (DSA): ``index_heads`` heads of ``index_dim`` score every cached token, and attention sees the ``index_top_k``
    best. ``norms_per_layer`` counts norms over ``hidden``.
    ``weight_dtype`` and ``expert_dtype`` ('' as the rest) are the formats the published checkpoint comes in.
    ``published_params`` leave out multi-token-prediction layers. Raises BadInput when the numbers cannot be a model.
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
    norms_per_layer: int = 2
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
    linear_attention: Literal["", "gated-delta", "kda", "lightning"] = ""
    linear_heads: int = 0
    linear_key_heads: int = 0
    linear_key_dim: int = 0
    linear_value_dim: int = 0
    linear_conv_width: int = 0
    last_layer_full: bool = False
    output_gate: bool = False
    shared_expert_gate: bool = False
    index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0
    weight_dtype: str = "bf16"
    expert_dtype: str = ""
    hf_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    published_params: float = 0.0
    published_active_params: float = 0.0

    def __post_init__(self) -> None:
        for field, (low, high) in _LIMITS.items():
            if not low <= getattr(self, field) <= high:
                raise BadInput(f"{field}={getattr(self, field)} of {self.name} must be between {low} and {high:,}")
        if self.n_heads % self.n_kv_heads:
            legal = ", ".join(str(n) for n in range(1, min(self.n_heads, 1024) + 1) if self.n_heads % n == 0)
            raise BadInput(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads} of {self.name}; legal: {legal}")
        if self.n_dense_layers > self.n_layers:
            raise BadInput(f"n_dense_layers={self.n_dense_layers} of {self.name} exceeds n_layers={self.n_layers}")
        if self.n_experts and not (1 <= self.top_k <= self.n_experts and self.moe_ffn_hidden >= 1):
            raise BadInput(
                f"top_k={self.top_k}, moe_ffn_hidden={self.moe_ffn_hidden} of {self.name}: an MoE model with "
                f"n_experts={self.n_experts} needs 1 <= top_k <= n_experts and moe_ffn_hidden >= 1"
            )
        if self.n_expert_groups and (self.n_experts % self.n_expert_groups or not 1 <= self.top_k_groups <= self.n_expert_groups):
            raise BadInput(
                f"n_expert_groups={self.n_expert_groups}, top_k_groups={self.top_k_groups} of {self.name}: the groups must divide "
                f"n_experts={self.n_experts}, and 1 <= top_k_groups <= n_expert_groups"
            )
        if self.ffn_hidden < 1 and self.n_moe_layers < self.n_layers:
            raise BadInput(f"ffn_hidden={self.ffn_hidden} of {self.name} must be at least 1: it has dense layers")
        if self.is_mla and not (self.rope_head_dim and self.v_head_dim):
            raise BadInput(f"kv_lora_rank={self.kv_lora_rank} of {self.name} means MLA: rope_head_dim and v_head_dim must be at least 1")
        self._check_layer_kinds()

    def _check_layer_kinds(self) -> None:
        kind, key_heads = self.linear_attention, self.linear_key_heads
        if kind and not (key_heads and self.linear_heads % key_heads == 0 and self.linear_key_dim and self.linear_value_dim):
            raise BadInput(
                f"linear_heads={self.linear_heads}, linear_key_heads={key_heads}, linear_key_dim={self.linear_key_dim}, "
                f"linear_value_dim={self.linear_value_dim} of {self.name}: {kind} layers need all four, and linear_key_heads must "
                "divide linear_heads"
            )
        if kind and self.window_tokens:
            raise BadInput(f"window_tokens={self.window_tokens} of {self.name}: its other layers are {kind}; give one of the two")
        if self.index_top_k and not (self.index_heads and self.index_dim and self.is_mla):
            raise BadInput(
                f"index_top_k={self.index_top_k} of {self.name} (DSA) needs index_heads and index_dim of at least 1, and latent "
                "attention (kv_lora_rank)"
            )

    @property
    def experts_in(self) -> str:
        """Format of the checkpoint's routed experts."""
        return self.expert_dtype or self.weight_dtype

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
        return (self.n_layers - self.n_dense_layers) // self.moe_every if self.n_experts else 0

    @property
    def n_full_attention_layers(self) -> int:
        """How many layers attend to the whole context (of DSA's: score all of it)."""
        if not self._mixed:
            return self.n_layers
        runs, rest = divmod(self.n_layers, self.full_attention_every) if self.full_attention_every else (0, 1)
        return runs + (self.last_layer_full and rest > 0)

    @property
    def n_linear_layers(self) -> int:
        """How many layers keep a recurrent state instead of a cache."""
        return self.n_layers - self.n_full_attention_layers if self.linear_attention else 0

    @property
    def n_window_layers(self) -> int:
        """How many layers see a window of the context."""
        return self.n_layers - self.n_full_attention_layers if self.window_tokens else 0

    @property
    def special_layers(self) -> str:
        """What layers it has that are no softmax attention over all or a window of the context, in words; '' if none."""
        if self.n_linear_layers:
            return f"{self.linear_attention} layers"
        return "sparse attention (DSA)" if self.index_top_k else ""

    @property
    def _mixed(self) -> bool:
        return bool(self.window_tokens or self.linear_attention)

    @property
    def shared_hidden(self) -> int:
        """FFN width of all shared experts together (0: none)."""
        return self.n_shared_experts * (self.shared_ffn_hidden or self.moe_ffn_hidden)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer ``layer`` (from 0) is MoE: past the dense ones, the last of each run of ``moe_every``."""
        return self.n_experts > 0 and layer >= self.n_dense_layers and (layer - self.n_dense_layers + 1) % self.moe_every == 0

    def is_full_attention_layer(self, layer: int) -> bool:
        """Whether layer ``layer`` (from 0) attends to the whole context: the last of each run of ``full_attention_every``."""
        if not self._mixed or (self.last_layer_full and layer == self.n_layers - 1):
            return True
        return self.full_attention_every > 0 and (layer + 1) % self.full_attention_every == 0
