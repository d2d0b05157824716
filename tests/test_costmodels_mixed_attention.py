"""Decodes that share one attention call with prompts: the trend by hand, its floors, and the tables of a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.attention_curve import AttentionWork, attention_work, prefill_trend_s
from roofplan.costmodels.mixed_attention import idle_blocks, key_s, mixed_decode_s, mixed_trend_s
from roofplan.costmodels.roofline import Roofline
from roofplan.costmodels.serving import Reach, decode_secant, step_times
from roofplan.costmodels.serving_attention import mixed_attention_s
from roofplan.costmodels.serving_ops import ServeSystem, serve_system
from roofplan.costmodels.step_times import PS, StepTimes
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration
from roofplan.scenarios.errors import UnknownName
from roofplan.scenarios.serving import EnginePlan, serving_engine

RTX = registry.accelerator("rtx4090")
LLAMA = registry.model("llama3.1-8b")
REACH = Reach(tokens=2304, chunk=2048, seqs=128, kv_low_tokens=512, kv_high_tokens=2304)
C = {"launch_s": 5e-6, "compute_frac": 0.8, "memory_frac": 0.9, "fill_keys": 150.0, "l2_frac": 1.0, "sharpness": 4.0}


def work(batch: float, kv: float) -> AttentionWork:
    return attention_work(
        batch=batch, q=1, kv=kv, heads=32, kv_heads=8, qk=128, v=128, causal=True, window=0, kv_bytes=2, peak=RTX.bf16_flops_per_s
    )


def system(gpu: str = "rtx4090", engine: str = "vllm") -> ServeSystem:
    return serve_system(registry.cluster(gpu, 1), serving_engine(engine))


def test_chunks_run_in_waves_of_blocks() -> None:
    """RTX 4090, 128 SMs: 64 and 256 tokens after 8192 are 32 and 128 blocks of 64 rows, one wave; 512 two, 2048 eight and the triangle."""
    c = {"launch_s": 5e-6, "compute_frac": 0.8, "memory_frac": 1.0, "small_head": 0.0, "sharpness": 4.0, "tile": 64.0, "fill_keys": 150.0}
    q = np.array([64.0, 256.0, 512.0, 2048.0])
    chunk = attention_work(
        batch=1, q=q, kv=q + 8192, heads=32, kv_heads=8, qk=128, v=128, causal=True, window=0, kv_bytes=2, peak=RTX.bf16_flops_per_s
    )
    keys = np.array([64 + 8342, 256 + 8342, 2 * 8342 + 2 * 576 / 2, 8 * 8342 + 8 * 2112 / 2])
    expected = 5e-6 + keys * 2 * 64 * 256 / (RTX.bf16_flops_per_s / 128 * 0.8)
    assert prefill_trend_s(chunk, RTX, c) == pytest.approx(expected, rel=0.01)


def test_one_wave_of_blocks_by_hand() -> None:
    """4 sequences of 32 heads are 128 blocks, one on each SM: 64 rows x 256 x 2 FLOPs a key at 80 % of an SM's peak."""
    one_sm = RTX.bf16_flops_per_s / 128 * 0.8
    expected = 5e-6 + 2 * 64 * 256 * (4096 + 150) / one_sm
    for batch, waves in ((1, 1), (4, 1), (5, 2), (8, 2)):
        assert float(mixed_trend_s(work(batch, 4096), RTX, C)) == pytest.approx(5e-6 + waves * (expected - 5e-6), rel=0.03)


def test_heads_of_a_group_read_the_cache_again_once_it_outgrows_l2() -> None:
    """128 sequences of 8192: 4 times 4.3 GB at 90 % of 1,008 GB/s; of 512, 34 MB a head stay in 72 MiB of L2 and are read once."""
    cache = 128 * 8192 * 8 * 512
    assert float(mixed_trend_s(work(128, 8192), RTX, C)) == pytest.approx(4 * cache / (0.9 * 1008e9), rel=0.05)
    small = 128 * 512 * 8 * 512 / (0.9 * 1008e9)
    compute = 32 * 2 * 64 * 256 * (512 + 150) / (RTX.bf16_flops_per_s / 128 * 0.8)
    assert float(mixed_trend_s(work(128, 512), RTX, C)) == pytest.approx(5e-6 + (compute**4 + small**4) ** 0.25, rel=0.05)


def test_idle_blocks() -> None:
    assert idle_blocks(10, 32, [16, 64, 65, 2048]).tolist() == [0, 0, 320, 320 * 31]


def test_no_price_beats_reading_the_cache() -> None:
    roofline = Roofline(RTX, load_calibration(RTX))
    n, kv = np.meshgrid([1.0, 3, 17, 100, 256], [1.0, 100, 1e3, 1e4, 1e5])
    price = mixed_decode_s(roofline, batch=n, kv_tokens=kv, n_heads=32, n_kv_heads=8, head_dim=128, chunk_tokens=1)
    assert np.all(price >= n * kv * 8 * 512 / RTX.hbm_bytes_per_s)
    assert np.all(np.diff(price[1:], axis=0) > 0)


def test_cards_without_such_rows_have_no_such_price() -> None:
    h100 = registry.accelerator("h100-sxm")
    with pytest.raises(UnknownName, match=r"attention\.mixed"):
        mixed_decode_s(
            Roofline(h100, load_calibration(h100)), batch=1, kv_tokens=100, n_heads=32, n_kv_heads=8, head_dim=128, chunk_tokens=1
        )


@pytest.mark.parametrize(("gpu", "engine"), [("h100-sxm", "vllm"), ("a100-80gb-sxm", "vllm"), ("rtx4090", "sglang")])
def test_other_cards_and_engines_pay_the_sum(gpu: str, engine: str) -> None:
    times = step_times(LLAMA, EnginePlan(), system(gpu, engine), REACH)
    assert not any(times.beside + times.beside_slope + times.idle)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_mixed_step_costs_what_the_call_does(tp: int) -> None:
    """At the mean cached length the affine price is within 3 % of the call itself, and nothing in the tables is negative."""
    plan, rtx = EnginePlan(tp=tp), serve_system(registry.cluster("rtx-pro-6000", 2), serving_engine("vllm"))
    times = step_times(LLAMA, plan, rtx, REACH)
    assert min(times.beside) == min(times.beside_slope) == min(times.idle) == 0
    n, kv = np.array([16.0, 32.0, 64.0, 128.0]), 1408.0
    shared = mixed_attention_s(LLAMA, plan, rtx, n, np.full(4, kv))
    fixed, slope = decode_secant(LLAMA, plan, rtx, n, REACH)
    for i, seqs in enumerate(map(int, n)):
        extra = times.shared_ps(seqs, int(seqs * kv), 64) / PS
        assert fixed[i] + slope[i] * seqs * kv + extra == pytest.approx(shared[i], rel=0.03)
    kv_sum, apart = 64 * 1408, replace(times, beside=[], beside_slope=[], idle=[])
    assert times.step_ps(64, kv_sum, [(512, 0)]) - apart.step_ps(64, kv_sum, [(512, 0)]) == times.shared_ps(64, kv_sum, 512)
    assert times.shared_ps(64, kv_sum, 2048) > times.shared_ps(64, kv_sum, 64)


def test_tables_left_out_are_zeros() -> None:
    times = StepTimes(linear=[0, 5, 6], decode=[1, 2], decode_slope=[0, 3], prefill=[0, 4], prefill_slope=[0, 1])
    assert (times.beside, times.beside_slope, times.idle) == ([0, 0], [0, 0], [0, 0])
    more = replace(times, beside=[0, 10], beside_slope=[0, 2], idle=[0, 7])
    assert more.step_ps(1, 100, [(1, 0)]) - times.step_ps(1, 100, [(1, 0)]) == 10 + 2 * 100 + 7
    assert more.step_ps(1, 100, []) == times.step_ps(1, 100, [])
    assert more.step_ps(0, 0, [(1, 0)]) == times.step_ps(0, 0, [(1, 0)])


def test_a_step_with_prompts_waits_for_its_longest_decode() -> None:
    """The longest of 32 decodes has 1,000 tokens more than the mean: 32 layers end 1,000 keys later each; without prompts they do not."""
    sys, plan = system(), EnginePlan()
    even, uneven = (step_times(LLAMA, plan, sys, replace(REACH, excess_tokens=(0.0,) * 32 + (extra,) * 97)) for extra in (0.0, 1000.0))
    one = key_s(sys.roofline.calibration)
    assert 5e-8 < one < 2e-7
    kv, chunk = 32 * 1200, [(256, 0)]
    more = uneven.step_ps(32, kv, chunk) - even.step_ps(32, kv, chunk)
    assert more == pytest.approx(32 * 1000 * one * PS, rel=1e-6)
    assert uneven.step_ps(32, kv, []) == even.step_ps(32, kv, [])
    assert uneven.step_ps(31, 31 * 1200, chunk) == even.step_ps(31, 31 * 1200, chunk)


def test_elsewhere_no_step_waits() -> None:
    assert key_s(load_calibration(registry.accelerator("h200"))) == 0
