"""Weights, gradients and optimizer state against ZeRO's closed forms and the planner formula of FlexSP."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels.params import count_params
from roofplan.costmodels.shard import shard
from roofplan.costmodels.states import data_ranks, stage_params, state_bytes
from roofplan.scenarios import registry
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.workload import TrainWorkload

FP32_GRADS = dataclasses.replace(registry.framework("megatron-core"), grad_dtype_bytes=4)
BF16_GRADS = dataclasses.replace(registry.framework("deepspeed"), grad_dtype_bytes=2)
WORK = TrainWorkload(seq_tokens=4096)


def states(name: str, plan: ParallelPlan, framework: object = BF16_GRADS) -> tuple[float, float, float]:
    model = registry.model(name)
    params = stage_params(model, plan, shard(model, plan, WORK), "first")
    return tuple(float(x) for x in state_bytes(plan, framework, params))  # type: ignore[arg-type, return-value]


def test_sixteen_bytes_a_parameter_and_how_zero_shards_them() -> None:
    """16P, (4+12/W)P, (2+14/W)P, 16P/W. Source: Rajbhandari et al. 2020, figure 1."""
    p, w = count_params(registry.model("llama3-8b")).total, 8
    for stage, per_param in ((0, 16), (1, 4 + 12 / w), (2, 2 + 14 / w), (3, 16 / w)):
        total = sum(states("llama3-8b", ParallelPlan(dp=w, zero_stage=stage)))
        assert total == pytest.approx(per_param * p, rel=1e-6), stage


@pytest.mark.parametrize(
    ("optimizer", "per_param"), [("adamw", 16), ("lion", 12), ("adamw-8bit", 10), ("adamw-bf16", 12), ("sgd", 8), ("mezo", 2)]
)
def test_bytes_by_optimizer(optimizer: str, per_param: float) -> None:
    p = count_params(registry.model("llama3-8b")).total
    plan = ParallelPlan(zero_stage=0, optimizer=optimizer)  # type: ignore[arg-type]
    assert sum(states("llama3-8b", plan)) == pytest.approx(per_param * p, rel=1e-6)


def test_fp32_training_also_takes_sixteen_bytes() -> None:
    p = count_params(registry.model("llama3-8b")).total
    weights, grads, optimizer = states("llama3-8b", ParallelPlan(zero_stage=0, precision="fp32"), FP32_GRADS)
    assert (weights, grads, optimizer) == pytest.approx((4 * p, 4 * p, 8 * p))


def test_lora_trains_only_its_adapters() -> None:
    weights, grads, optimizer = states("llama3-8b", ParallelPlan(zero_stage=0, lora_rank=16))
    assert grads == optimizer == 0
    assert weights == pytest.approx(2 * count_params(registry.model("llama3-8b")).total)


@given(
    tp=st.sampled_from([1, 2, 4, 8]), pp=st.sampled_from([1, 2, 4, 8]), name=st.sampled_from(["llama3-8b", "llama3.1-70b", "mixtral-8x7b"])
)
def test_stages_hold_the_whole_model(tp: int, pp: int, name: str) -> None:
    """First + middles + last over all tensor ranks = every parameter (norms and routers are replicated over tp)."""
    model = registry.model(name)
    plan = ParallelPlan(tp=tp, pp=pp)
    cut = shard(model, plan, WORK)
    held = {
        s: float(stage_params(model, plan, cut, s).dense + stage_params(model, plan, cut, s).expert) for s in ("first", "middle", "last")
    }
    count = count_params(model)
    n_experts_params = model.n_moe_layers * model.n_experts * count.expert
    dense = held["first"] if pp == 1 else held["first"] + (pp - 2) * held["middle"] + held["last"]
    # experts are not cut by tp here (expert_tp = 1), dense parts are
    expert_share = n_experts_params
    replicated = (tp - 1) * (model.n_layers * count.norm_per_layer + model.n_moe_layers * count.router_per_layer + count.final_norm)
    expected = (count.total - expert_share + replicated) / tp + expert_share
    assert dense == pytest.approx(expected, rel=1e-6)


def test_experts_are_replicated_over_fewer_ranks() -> None:
    dense, expert = data_ranks(ParallelPlan(dp=16, tp=2, cp=2, ep=8))
    assert (float(dense), float(expert)) == (32, 8)


def test_a_batch_of_candidates_equals_them_one_by_one() -> None:
    model = registry.model("llama3-8b")
    tps, stages = np.array([1, 2, 4, 8]), np.array([0, 1, 2, 3])
    plan = ParallelPlan(dp=8, tp=tps, zero_stage=stages)
    many = state_bytes(plan, BF16_GRADS, stage_params(model, plan, shard(model, plan, WORK), "first"))
    for i, (tp, stage) in enumerate(zip(tps, stages, strict=True)):
        one = states("llama3-8b", ParallelPlan(dp=8, tp=int(tp), zero_stage=int(stage)))
        assert [float(np.broadcast_to(m, 4)[i]) for m in many] == pytest.approx(list(one))
