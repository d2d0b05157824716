"""Tokens travel to their experts and back: how wide, how many stay, over how many ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..moe_volume import narrow_params
from ..step import Stage, Step, require_positive

STAGE = Stage.SPLIT


def expert_exchange(
    step: Step,
    *,
    ep: int,
    width_frac: float = 1.0,
    local_frac: float = 0.0,
    dispatch_bytes: float = 2.0,
    combine_bytes: float = 2.0,
    max_nodes: int = 0,
) -> Step:
    """Bytes a rank sends per pass: ``N k h (dispatch + combine) r (1 - local)(ep-1)/ep`` per MoE layer, twice for a training pass.

    ``width_frac`` r < 1 exchanges projected tokens; the projections cost ``2 h r h`` parameters a layer. ``max_nodes``: at most that many
    copies of a token leave its node (node-limited routing). Two messages a layer and direction.
    Source: BigMac (2025), §3; DeepSeek-V3 (2024), §3.2.
    """
    require_positive("expert_exchange", ep=ep)
    model = step.model
    copies = min(model.top_k, max_nodes) if max_nodes else model.top_k
    tokens = np.asarray(step.n_seqs * step.q_tokens, float)
    directions = 2.0 if step.kind == "train" else 1.0
    each = tokens * copies * model.hidden * width_frac * (dispatch_bytes + combine_bytes)
    sent = directions * model.n_moe_layers * each * (1.0 - local_frac) * (ep - 1) / ep
    extra = narrow_params(model.hidden, model.n_moe_layers, dim_scale=width_frac) if width_frac < 1 else 0.0
    return replace(
        step, network_bytes=step.network_bytes + sent, n_hops=step.n_hops + 2.0 * directions * model.n_moe_layers,
        linear_flops=step.linear_flops + (6.0 if step.kind == "train" else 2.0) * tokens * extra,
        held_weight_bytes=step.held_weight_bytes + 2.0 * np.asarray(extra), weight_bytes=step.weight_bytes + 2.0 * np.asarray(extra),
    )  # fmt: skip
