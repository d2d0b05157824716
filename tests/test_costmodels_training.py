"""The priced step against published times, physical floors and properties over random layouts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels.layer_time import layer_mix
from roofplan.costmodels.overlap import SLOWDOWN, exposed
from roofplan.costmodels.system import make_system
from roofplan.costmodels.training import StepCost, train_step
from roofplan.scenarios import registry
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.workload import TrainWorkload

SECONDS = (
    "compute_s", "bubble_s", "exposed_tp_s", "exposed_cp_s", "exposed_ep_s", "exposed_dp_s", "exposed_pp_s",
    "exposed_offload_s", "optimizer_s", "overhead_s",
)  # fmt: skip


def step(name: str, cluster: str, n_gpus: int, seq: int, batch: int = 1, **plan: Any) -> StepCost:
    layout = ParallelPlan(**plan)
    system = make_system(registry.cluster(cluster, n_gpus), layout.framework)
    return train_step(registry.model(name), layout, TrainWorkload(seq_tokens=seq, global_batch=batch), system)


@pytest.mark.parametrize(("recompute", "published_s"), [("full", 1.42), ("selective", 1.10)])
def test_the_22b_model_of_korthikanti(recompute: str, published_s: float) -> None:
    """Source: Korthikanti et al. 2022, table 5: 8 A100, tp 8, micro-batch 4, one micro-batch."""
    got = step(
        "megatron-22b", "selene", 8, 2048, 4, tp=8, micro_batch=4, recompute=recompute, attention="unfused", precision="fp16",
        framework="megatron-2022", sequence_parallel=int(recompute == "selective"), zero_stage=0,
    )  # fmt: skip
    assert float(got.step_time_s) == pytest.approx(published_s, rel=0.12)


def test_llama_3_8b_pretraining_on_8_h100() -> None:
    """Source: Megatron-LM's llama README (core 0.12, fp8): 9.49 s a step of 128 sequences of 8,192, dp 4, cp 2."""
    plan = {"dp": 4, "cp": 2, "cp_kind": "zigzag", "grad_accum": 32, "precision": "fp8", "framework": "megatron-bridge"}
    assert float(step("llama3-8b", "h100-sxm", 8, 8192, 128, **plan).step_time_s) == pytest.approx(9.49, rel=0.12)


def test_hidden_messages_slow_what_hides_them() -> None:
    assert exposed(1.0, 10.0, 0.0) == 1.0
    assert exposed(1.0, 10.0, 1.0) == pytest.approx(SLOWDOWN)
    assert exposed(5.0, 2.0, 1.0) == pytest.approx(3.0 + 2 * SLOWDOWN)


layouts = st.fixed_dictionaries(
    {
        "dp": st.sampled_from([1, 2, 4]),
        "tp": st.sampled_from([1, 2, 4, 8]),
        "pp": st.sampled_from([1, 2, 4]),
        "cp": st.sampled_from([1, 2, 4]),
        "cp_kind": st.sampled_from(["ring", "zigzag", "ulysses", "allgather"]),
        "schedule": st.sampled_from(["1f1b", "gpipe", "zb1p"]),
        "zero_stage": st.integers(0, 3),
        "micro_batch": st.sampled_from([1, 2]),
        "grad_accum": st.sampled_from([4, 16]),
        "recompute": st.sampled_from(["none", "selective", "remat", "full"]),
        "framework": st.sampled_from(["deepspeed", "megatron-core", "nanotron", "llm-foundry"]),
        "offload_optimizer": st.integers(0, 1),
        "offload_activations": st.integers(0, 1),
    }
)


@given(
    plan=layouts,
    name=st.sampled_from(["llama3-8b", "mixtral-8x7b", "deepseek-v2-lite", "gemma2-9b"]),
    gpu=st.sampled_from(["a100-80gb-sxm", "h100-sxm", "h200", "b200", "mi300x", "l40s", "rtx4090"]),
    seq=st.sampled_from([1024, 32768, 1_048_576]),
)
def test_no_step_beats_the_floor_and_its_parts_sum(plan: dict[str, Any], name: str, gpu: str, seq: int) -> None:
    if plan["cp"] == 1:
        plan = plan | {"cp_kind": "none"}
    batch = plan["dp"] * plan["micro_batch"] * plan["grad_accum"]
    got = step(name, gpu, 256, seq, batch, **plan)
    parts = [float(getattr(got, part)) for part in SECONDS]
    assert min(parts) >= 0
    assert np.isfinite(float(got.step_time_s))
    assert float(got.step_time_s) >= float(got.floor_s)
    assert float(got.step_time_s) == pytest.approx(max(sum(parts), float(got.floor_s)))
    assert float(got.hardware_flops) * 8 >= float(got.model_flops) / float(ParallelPlan(**plan).n_gpus)


@given(plan=layouts)
def test_recomputation_costs_time_in_its_order(plan: dict[str, Any]) -> None:
    if plan["cp"] == 1:
        plan = plan | {"cp_kind": "none"}
    times = [
        float(step("llama3-8b", "h100-sxm", 256, 32768, 64, **(plan | {"recompute": r, "offload_activations": 0})).micro_bwd_s)
        for r in ("none", "remat", "full")
    ]
    assert times == sorted(times)


def test_batches_equal_single_candidates() -> None:
    model, system = registry.model("llama3-8b"), make_system(registry.cluster("h100-sxm", 64), "megatron-core")
    tps, pps = np.array([1, 2, 4, 8]), np.array([8, 4, 2, 1])
    plan = ParallelPlan(dp=8, tp=tps, pp=pps, grad_accum=8)
    many = train_step(model, plan, TrainWorkload(seq_tokens=8192, global_batch=64), system)
    for i, (tp, pp) in enumerate(zip(tps, pps, strict=True)):
        one = train_step(model, dataclasses.replace(plan, tp=int(tp), pp=int(pp)), TrainWorkload(seq_tokens=8192, global_batch=64), system)
        assert float(many.step_time_s[i]) == pytest.approx(float(one.step_time_s))  # type: ignore[index]


def test_kinds_of_layers_sum_to_the_model() -> None:
    for name in ("llama3-8b", "gemma2-9b", "deepseek-v3", "gpt-oss-20b"):
        assert sum(share for share, _, _ in layer_mix(registry.model(name))) == pytest.approx(1.0)
    assert layer_mix(registry.model("gemma2-9b")) == [(0.5, False, 0), (0.5, False, 4096)]


def test_dualpipe_hides_expert_messages_of_paired_chunks_and_shows_those_of_lone_ones() -> None:
    def shown(n_micro: int, schedule: str) -> float:
        plan = {"dp": 128, "pp": 16, "ep": 64, "grad_accum": n_micro, "precision": "fp8", "framework": "deepseek-hai"}
        return float(step("deepseek-v3", "h800", 2048, 4096, 128 * n_micro, **plan, schedule=schedule).exposed_ep_s)

    lone = shown(60, "dualpipe")
    assert lone < 0.9 * shown(60, "1f1b")
    assert shown(960, "dualpipe") - lone < 0.4 * (shown(960, "1f1b") - shown(60, "1f1b"))


def test_a_step_says_when_it_goes_beyond_what_was_measured() -> None:
    assert not step("llama3-8b", "h100-sxm", 8, 16384, 8, dp=8).extrapolated
    assert step("llama3-8b", "h100-sxm", 8, 32768, 8, dp=8).extrapolated  # longer than any measured prompt
    assert step("llama3-8b", "l40s", 8, 4096, 8, dp=8).extrapolated  # a card that nobody measured
