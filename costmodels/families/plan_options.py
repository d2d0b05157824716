"""Techniques of a training step that are an option of its plan: the planner searches them, the framework has the switch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from ...scenarios.plan import CpKind, Optimizer, ParallelPlan, Recompute, Schedule, Sharding


def plan_options(
    plan: ParallelPlan,
    *,
    cp_kind: CpKind | None = None,
    schedule: Schedule | None = None,
    recompute: Recompute | None = None,
    sharding: Sharding | None = None,
    zero_stage: int | None = None,
    optimizer: Optimizer | None = None,
    precision: str | None = None,
    attention: Literal["flash", "unfused"] | None = None,
    sequence_parallel: int | None = None,
    offload_optimizer: int | None = None,
    offload_params: int | None = None,
    offload_activations: int | None = None,
    tiled_mlp: int | None = None,
    fused_loss: int | None = None,
    lora_rank: int | None = None,
) -> ParallelPlan:
    """The plan with the given fields replaced; what each costs is ``train_step`` and ``train_memory`` of the new plan."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if name != "plan" and value is not None}
    return replace(plan, **given)
