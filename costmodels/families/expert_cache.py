"""A part of the experts is on the device, the rest on the host; a predictor has most of what a pass needs loaded in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..params import count_params
from ..step import Stage, Step

STAGE = Stage.PLACE


def expert_cache(step: Step, *, device_frac: float, hit_frac: float) -> Step:
    """Device holds ``device_frac`` of the routed experts; a pass loads ``(1 - hit)`` of the experts it reads over the host link.

    ``T = max(compute, (1 - hit) · E_active · bytes / X)``. Source: ExpertFlow (2024).
    """
    p = count_params(step.model)
    lookup = 0 if step.model.tied_embeddings else p.embedding
    routed = p.n_moe_layers * step.model.n_experts * p.expert
    element = np.asarray(step.held_weight_bytes) / p.total
    read = np.asarray(step.weight_bytes) - (p.total - routed - lookup) * element
    away = (1.0 - device_frac) * routed * element
    return replace(
        step, held_weight_bytes=step.held_weight_bytes - away, host_held_bytes=step.host_held_bytes + away,
        host_bytes=step.host_bytes + (1.0 - hit_frac) * np.maximum(read, 0.0),
    )  # fmt: skip
