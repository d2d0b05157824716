"""Routed experts are pruned, or the routed experts of a pass are fewer."""

from __future__ import annotations

from dataclasses import replace

from ..params import count_params
from ..step import Stage, Step

STAGE = Stage.MODEL


def fewer_experts(step: Step, *, kept_frac: float = 1.0, read_frac: float = 1.0) -> Step:
    """Weights without the pruned experts: ``P - (1 - kept) P_experts``; of those kept, ``read_frac`` are read by a pass.

    A token still passes ``top_k`` experts, so FLOPs stay. Source: PreMoe (2025).
    """
    p = count_params(step.model)
    routed = p.n_moe_layers * step.model.n_experts * p.expert / p.total
    held = 1.0 - (1.0 - kept_frac) * routed
    read = 1.0 - (1.0 - kept_frac * read_frac) * routed
    return replace(step, held_weight_bytes=step.held_weight_bytes * held, weight_bytes=step.weight_bytes * read)
