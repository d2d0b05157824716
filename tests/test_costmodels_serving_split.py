"""Attention apart from FFN: stage algebra by hand, a naive pipeline, memory, published choices of A:F, and each refusal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.params import count_params
from roofplan.costmodels.serving import Reach
from roofplan.costmodels.serving_attention import decode_attention_s
from roofplan.costmodels.serving_memory import serve_memory
from roofplan.costmodels.serving_ops import ServeSystem, serve_system
from roofplan.costmodels.serving_split import SplitTimes, attention_side, ffn_side, layer_s, split_times, sustained_s, ways_s
from roofplan.costmodels.split_choice import best_batch, choose_split
from roofplan.costmodels.split_weights import split_weights_bytes
from roofplan.costmodels.step_times import PS
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, serving_engine
from roofplan.scenarios.serving_parts import AttentionFfnSplit
from roofplan.sim.serving import simulate_serving

STEP3 = registry.model("step-3")
FP8 = EnginePlan(weight_dtype="fp8", expert_dtype="fp8_block", kv_dtype="fp8")


def plan(attention: int = 16, ffn: int = 16, ep: int = 16, m: int = 3) -> EnginePlan:
    return dataclasses.replace(FP8, dp=attention, ep=ep, attention_ffn=AttentionFfnSplit(n_ffn_gpus=ffn, micro_batches=m))


def h800(nodes: int) -> ServeSystem:
    return serve_system(registry.cluster("h800", 8 * nodes), serving_engine("vllm"))


def pipeline_s(stages: tuple[float, ...], micro_batches: int, layers: int) -> float:
    """Naive: each stage is one server; micro-batches go round the stages once a layer, first come first served."""
    free = [0.0] * len(stages)
    ready = [0.0] * micro_batches
    for _ in range(layers):
        for s, took in enumerate(stages):
            for i in range(micro_batches):
                begin = max(free[s], ready[i])
                free[s] = ready[i] = begin + took
    return max(ready)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(stages=st.tuples(*[st.floats(0.01, 1.0)] * 4), m=st.integers(1, 6))
def test_layer_time_is_the_pipelines_period(stages: tuple[float, float, float, float], m: int) -> None:
    """Long runs of the naive pipeline advance one layer per ``max(m·longest, sum)``."""
    per_layer = (pipeline_s(stages, m, 240) - pipeline_s(stages, m, 40)) / 200
    assert per_layer == pytest.approx(float(layer_s(*map(np.asarray, stages), m)), rel=0.02)


def test_step_is_joined_from_its_stages() -> None:
    one = np.array([0.0, 1e-6, 2e-6, 3e-6, 4e-6])
    times = SplitTimes(
        n_layers=10, micro_batches=2, linear=one, ffn=((4, 2 * one, 5 * one, one), (6, one, one, one)),
        decode=np.zeros(9), decode_slope=np.full(9, 1e-8), prefill=np.arange(9) * 1e-6, prefill_slope=np.zeros(9), fixed=np.full(9, 1e-5),
    )  # fmt: skip
    # 6 decodes in 2 micro-batches of 3; 600 cached tokens: 6e-6 s over 2 micro-batches and 10 layers
    attention = 3e-6 + 6e-6 / 20
    first = max(2 * 15e-6, attention + 6e-6 + 15e-6 + 3e-6)
    second = max(2 * attention, attention + 9e-6)
    assert times.step_ps(6, 600, []) == round((4 * first + 6 * second + 1e-5) * PS)
    assert times.step_ps(0, 0, []) == 0
    assert times.step_ps(1, 0, []) < times.step_ps(1, 0, [(2, 5)]) < times.step_ps(3, 300, [(2, 5)])
    assert times.max_tokens == 8


def test_tables_agree_with_the_stages() -> None:
    system, p = h800(4), plan()
    times = split_times(STEP3, p, system, Reach(tokens=6144, chunk=256, seqs=6144, kv_low_tokens=2048, kv_high_tokens=4096))
    out, back = ways_s(STEP3, p, system, np.array([2048.0]), moe=True)
    assert times.ffn[1][1][2048] == pytest.approx(out[0], rel=0.01)
    assert times.ffn[1][3][2048] == pytest.approx(back[0], rel=0.01)
    assert [row[0] for row in times.ffn] == [5, 56]
    attention = 3 * decode_attention_s(STEP3, attention_side(p), system, np.array([2048.0]), 4096.0)[0]
    assert times.decode[6144] + times.decode_slope[6144] * 6144 * 4096 == pytest.approx(attention, rel=0.02)
    more = [times.step_ps(n, n * 4096, []) for n in (256, 1024, 3072, 6144)]
    assert more == sorted(more)
    with_prompt = times.step_ps(1024, 1024 * 4096, [(256, 4096)])
    assert with_prompt > times.step_ps(1024, 1024 * 4096, [])


def test_bytes_on_the_way_are_hand_counted() -> None:
    """16 whole-expert groups: home and 2.82 - .18 more copies of 8 bits a token; no gather inside a group of one GPU."""
    system, t = h800(4), np.array([2048.0])
    copies = 1 + 15 * (1 - (15 / 16) ** 3)
    out, back = ways_s(STEP3, plan(), system, t, moe=True)
    per_gpu = 2048 * 7168 * copies / 16
    assert out[0] == pytest.approx(float(system.network.p2p_s(per_gpu, 8)))
    assert back[0] == pytest.approx(float(system.network.p2p_s(2 * per_gpu, 8)))
    assert out[0] >= per_gpu / 50e9
    dense = ways_s(STEP3, plan(), system, t, moe=False)
    assert dense[0][0] < out[0]
    one_node = serve_system(registry.cluster("h800", 8), serving_engine("vllm"))
    assert ways_s(STEP3, plan(4, 4, 4), one_node, t, moe=True)[0][0] < out[0] * 2, "inside a node the links are NVLink's"


def test_weights_are_shared_out() -> None:
    p, count = plan(), count_params(STEP3)
    attention, ffn = split_weights_bytes(STEP3, p)
    outer = 2 * (count.embedding + count.head + 61 * count.norm_per_layer)
    assert attention == pytest.approx(61 * count.attn_per_layer + outer)
    shared = 56 * count.shared_per_layer + 5 * count.dense_ffn_per_layer + 2 * 56 * count.router_per_layer
    assert ffn == pytest.approx(48 * 56 * count.expert / 16 * 1.0 + shared, rel=0.01)
    engine, gpu = serving_engine("vllm"), registry.accelerator("h800")
    held = serve_memory(STEP3, p, engine, gpu, 6144, 6144, 16)
    assert held.kv_blocks * 16 > 6144 * 4096, "the published batch fits"
    with pytest.raises(BadInput, match=r"n_ffn_gpus=1 of h800 would hold .* GiB of FFN weights .* at least 5 are needed"):
        serve_memory(STEP3, plan(16, 1, 1), engine, gpu, 6144, 6144, 16)


def test_sustained_kernels_keep_to_the_floor() -> None:
    system = h800(4)
    got = sustained_s(system, np.array([1e9, 1e14]), 3e8, "fp8")
    assert got[0] >= 3e8 / system.accelerator.hbm_bytes_per_s
    assert got[1] >= 2e14 / system.accelerator.peak_flops_per_s("fp8")
    reach = Reach(tokens=6144, chunk=64, seqs=6144, kv_high_tokens=4096)
    measured, sustained = (split_times(STEP3, plan(), system, reach, s).step_ps(6144, 6144 * 4096, []) for s in (False, True))
    assert sustained < measured


@pytest.mark.parametrize(("nodes", "context", "kv", "attention"), [(4, 4096, "fp8", 2), (5, 4096, "bf16", 3), (6, 8192, "fp8", 4)])
def test_published_splits_are_chosen(nodes: int, context: int, kv: str, attention: int) -> None:
    """Step-3 (2025), table 8: 2A2F at 4K, 3A2F with 16-bit attention, 4A2F at 8K; 50 ms a token."""
    asked = dataclasses.replace(FP8, kv_dtype=kv, weight_dtype="bf16" if kv == "bf16" else "fp8")
    best = choose_split(STEP3, asked, h800(nodes), context, 0.05, sustained=True)[0]
    assert (best.n_attention, best.n_ffn) == (attention, nodes - attention)
    assert best.tpot_s <= 0.05
    assert best.tokens_per_s_per_gpu == pytest.approx(best.batch / best.tpot_s / (8 * nodes))


def test_best_batch_is_the_last_that_keeps_the_time() -> None:
    system, p = h800(4), plan(ep=8)
    n, took = best_batch(STEP3, p, system, 4096, 0.04)
    assert took <= 0.04
    assert best_batch(STEP3, p, system, 4096, 1.0, batch=n + 160)[1] > 0.04
    assert best_batch(STEP3, p, system, 4096, 1e-4) == (0, float("inf"))
    assert best_batch(STEP3, p, system, 60_000, 1.0, batch=6144)[0] == 0, "its cache does not fit"


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(BadInput, match="pp=2: attention apart from FFN pipelines its micro-batches itself"):
        attention_side(dataclasses.replace(plan(), pp=2))
    with pytest.raises(BadInput, match="ep=16 does not divide the 8 FFN GPUs"):
        plan(24, 8, 16)
    for call in (lambda: ffn_side(FP8), lambda: split_weights_bytes(STEP3, FP8)):
        with pytest.raises(BadInput, match="no attention_ffn"):
            call()
    with pytest.raises(BadInput, match="no attention_ffn"):
        split_times(STEP3, FP8, h800(2), Reach(tokens=8, chunk=8, seqs=8))
    with pytest.raises(BadInput, match="is one node"):
        choose_split(STEP3, FP8, h800(1), 4096, 0.05)
    with pytest.raises(BadInput, match="allow more time or add nodes"):
        choose_split(STEP3, FP8, h800(2), 4096, 1e-3)


def test_simulated_replica_takes_the_priced_steps() -> None:
    """Decodes alone: the simulator's gap between tokens is the priced step, and mixed prompts finish too."""
    n = 64
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=np.full(n, 16), output_tokens=np.full(n, 50))
    asked = dataclasses.replace(plan(), max_num_seqs=n, token_budget=2048)
    out = simulate_serving(STEP3, registry.cluster("h800", 32), asked, work)
    times = split_times(
        STEP3, asked, h800(4), Reach(tokens=2048 + n, chunk=2048, seqs=n, kv_low_tokens=16, kv_high_tokens=272, past_tokens=1024)
    )
    steps = sum(times.step_ps(n, n * (16 + i), []) for i in range(1, 50))
    assert out.finish_s[0] - out.first_s[0] == pytest.approx(steps / PS, rel=1e-3)
    long = ServeWorkload(arrival_s=np.arange(9) * 0.1, prompt_tokens=np.full(9, 5000), output_tokens=np.full(9, 10))
    mixed = simulate_serving(STEP3, registry.cluster("h800", 32), asked, long)
    assert np.isfinite(mixed.finish_s).all()
