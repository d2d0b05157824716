"""Peak memory against published runs, closed forms and properties that hold for every layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels.activations import attention_working, ffn_working, layer_saved
from roofplan.costmodels.memory import PARTS, MemoryBreakdown, train_memory
from roofplan.costmodels.shard import shard
from roofplan.costmodels.system import make_system
from roofplan.scenarios import registry
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.workload import TrainWorkload

GIB = 2.0**30
ALST: dict[str, Any] = {"zero_stage": 3, "recompute": "full", "offload_optimizer": 1, "framework": "deepspeed-alst"}
FULL = ALST | {"offload_activations": 1, "tiled_mlp": 1, "fused_loss": 1}


def memory(name: str, cluster: str, n_gpus: int, seq: int, **plan: Any) -> MemoryBreakdown:
    layout = ParallelPlan(**plan)
    system = make_system(registry.cluster(cluster, n_gpus), layout.framework)
    return train_memory(registry.model(name), layout, TrainWorkload(seq_tokens=seq), system)


@pytest.mark.parametrize(
    ("seq", "plan", "published_gib"),
    [
        (65_000, ALST | {"offload_params": 1}, 137.36),
        (300_000, ALST | {"offload_params": 1, "fused_loss": 1}, 134.96),
        (650_000, ALST | {"offload_params": 1, "fused_loss": 1, "offload_activations": 1}, 126.81),
        (1_200_000, FULL | {"offload_params": 1}, 136.15),
    ],
)
def test_peak_of_llama_8b_on_one_h200(seq: int, plan: dict[str, Any], published_gib: float) -> None:
    """Source: ArcticTraining's ALST recipes, nvidia-smi readings in their comments."""
    got = memory("llama3.1-8b", "h200", 1, seq, **plan)
    assert float(got.total_bytes) / GIB == pytest.approx(published_gib, rel=0.1)


@pytest.mark.parametrize(("n_gpus", "published"), [(8, 3.7e6), (16, 8e6), (32, 15e6)])
def test_longest_sequences_of_alst_fit_and_a_sixth_more_does_not(n_gpus: int, published: float) -> None:
    plan = FULL | {"cp": n_gpus, "cp_kind": "ulysses"}
    assert memory("llama3.1-8b", "alst-aws", n_gpus, int(0.85 * published), **plan).fits
    assert not memory("llama3.1-8b", "alst-aws", n_gpus, int(1.18 * published), **plan).fits


def test_activations_of_a_gpt_layer_are_korthikantis() -> None:
    """34 s b h + 5 a s² b bytes a layer, nothing recomputed; selective recomputation drops the second term (§4, equations 1 and 6).

    Ours has no dropout masks outside attention (2 sbh) and counts 32.
    """
    model, plan = registry.model("gpt3-175b"), ParallelPlan(attention="unfused", precision="fp16")
    cut = shard(model, plan, TrainWorkload(seq_tokens=2048))
    fw = registry.framework("megatron-2022")
    sbh, scores = 2048.0 * model.hidden, 5.0 * model.n_heads * 2048.0**2
    assert float(layer_saved(model, plan, cut, fw, "none")) == pytest.approx(32 * sbh + scores, rel=0.02)
    assert float(layer_saved(model, plan, cut, fw, "selective")) == pytest.approx(32 * sbh, rel=0.02)
    assert float(layer_saved(model, plan, cut, fw, "full")) == 2 * sbh


def test_tensors_alive_in_a_recomputed_llama_layer() -> None:
    """Counted by hand in units of hidden x 2 bytes a token: 14 in attention, 18 with an all-to-all, 7 + 2.5 + 14 in the FFN."""
    model = registry.model("llama3-8b")
    unit = 65536 * model.hidden * 2.0
    alone = ParallelPlan(recompute="full")
    cut = shard(model, alone, TrainWorkload(seq_tokens=65536))
    assert float(attention_working(model, alone, cut)) == pytest.approx(14 * unit)
    assert float(ffn_working(model, alone, cut)) == pytest.approx((7 + 2.5 + 4 * 3.5) * unit)
    split = ParallelPlan(recompute="full", cp=8, cp_kind="ulysses")
    cut = shard(model, split, TrainWorkload(seq_tokens=8 * 65536))
    assert float(attention_working(model, split, cut)) == pytest.approx(18 * unit)


def test_host_memory_is_optimizer_state_and_checkpoints_of_the_nodes_ranks() -> None:
    got = memory("llama3.1-8b", "alst-aws", 8, 3_700_000, **FULL, cp=8, cp_kind="ulysses")
    checkpoints = 8 * (3_700_000 / 8) * 4096 * 2 * 32
    assert float(got.host_bytes) == pytest.approx(checkpoints + 14 * 8.03e9, rel=0.01)


layouts = st.fixed_dictionaries(
    {
        "dp": st.sampled_from([1, 2, 4, 8]),
        "tp": st.sampled_from([1, 2, 4, 8]),
        "pp": st.sampled_from([1, 2, 4]),
        "zero_stage": st.integers(0, 3),
        "micro_batch": st.sampled_from([1, 2, 4]),
        "grad_accum": st.sampled_from([1, 4, 16]),
        "recompute": st.sampled_from(["none", "selective", "remat", "full"]),
        "offload_activations": st.integers(0, 1),
        "offload_optimizer": st.integers(0, 1),
        "fused_loss": st.integers(0, 1),
    }
)


@given(
    plan=layouts, name=st.sampled_from(["llama3-8b", "mixtral-8x7b", "deepseek-v2-lite", "gemma2-9b"]), seq=st.sampled_from([2048, 32768])
)
def test_parts_are_finite_positive_and_sum_to_the_total(plan: dict[str, Any], name: str, seq: int) -> None:
    got = memory(name, "h100-sxm", 256, seq, **plan)
    parts = [float(getattr(got, part)) for part in PARTS]
    assert all(np.isfinite(parts))
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(float(got.total_bytes))


@given(plan=layouts)
def test_more_tokens_never_take_less_memory_and_saving_options_never_more(plan: dict[str, Any]) -> None:
    def total(seq: int, **change: Any) -> float:
        return float(memory("llama3-8b", "h100-sxm", 256, seq, **(plan | change)).total_bytes)

    assert total(8192) <= total(16384)
    assert total(8192, recompute="full") <= total(8192, recompute="none") * 1.2  # a single recomputed layer can cost more than it saves
    for saver in ("offload_activations", "offload_optimizer", "fused_loss"):
        assert total(8192, **{saver: 1}) <= total(8192, **{saver: 0})


def test_batches_equal_single_candidates() -> None:
    model, system = registry.model("llama3-8b"), make_system(registry.cluster("h100-sxm", 64), "megatron-core")
    tps, pps = np.array([1, 2, 4, 8]), np.array([8, 4, 2, 1])
    plan = ParallelPlan(dp=8, tp=tps, pp=pps, grad_accum=8)
    many = train_memory(model, plan, TrainWorkload(seq_tokens=8192), system)
    for i, (tp, pp) in enumerate(zip(tps, pps, strict=True)):
        one = train_memory(model, dataclasses.replace(plan, tp=int(tp), pp=int(pp)), TrainWorkload(seq_tokens=8192), system)
        assert float(many.total_bytes[i]) == pytest.approx(float(one.total_bytes))  # type: ignore[index]
