"""A plan's options, replaced and nothing else."""

from __future__ import annotations

from dataclasses import replace

from roofplan.costmodels.families.plan_options import plan_options
from roofplan.scenarios.plan import ParallelPlan


def test_only_what_is_given_changes() -> None:
    plan = ParallelPlan(dp=2, cp=4, tiled_mlp=1)
    after = plan_options(plan, cp_kind="ulysses", offload_optimizer=1, tiled_mlp=0)
    assert after == replace(plan, cp_kind="ulysses", offload_optimizer=1, tiled_mlp=0)
    assert plan_options(plan) == plan
