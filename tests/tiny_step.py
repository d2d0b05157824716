"""A pass with round totals, so that what a family does to it can be computed in the head."""

from __future__ import annotations

from typing import Any

from roofplan.costmodels.step import Kind, Step
from roofplan.scenarios.model import ModelSpec

TINY = ModelSpec(
    name="tiny", source="made up", n_layers=2, hidden=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_hidden=16, vocab=32, gated_mlp=True
)  # fmt: skip
"""192 attention and 384 FFN parameters a layer (576 with norms 592), 256 each in embedding and head; 32 bytes of cache a token."""

TINY_MOE = ModelSpec(
    name="tiny-moe", source="made up", n_layers=2, hidden=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_hidden=16, vocab=32,
    n_experts=4, top_k=1, moe_ffn_hidden=16,
)  # fmt: skip
"""As TINY with four experts of 384 parameters a layer: 3072 of 4072 parameters are routed."""

TINY_MLA = ModelSpec(
    name="tiny-mla", source="made up", n_layers=2, hidden=8, n_heads=2, n_kv_heads=2, head_dim=4, ffn_hidden=16, vocab=32,
    kv_lora_rank=6, rope_head_dim=2, v_head_dim=4,
)  # fmt: skip
"""Latent of 6 and rope key of 2 elements a token and layer."""


def tiny_step(kind: Kind = "decode", model: ModelSpec = TINY, **totals: Any) -> Step:
    """One sequence of 100 tokens; 1000 + 100 FLOPs; 200 bytes of weights, 100 of cache, 50 of activations."""
    q = 1.0 if kind == "decode" else 100.0
    given: dict[str, Any] = {
        "n_seqs": 1.0, "q_tokens": q, "kv_tokens": 100.0, "yield_tokens": q, "linear_flops": 1000.0, "attention_flops": 100.0,
        "weight_bytes": 200.0, "kv_bytes": 100.0, "held_weight_bytes": 200.0, "held_kv_bytes": 100.0, "held_activation_bytes": 50.0,
    }  # fmt: skip
    return Step(model=model, kind=kind, **{**given, **totals})
