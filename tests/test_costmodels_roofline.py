"""The roofline: no price under its floor on any card and shape, near measured times, array-valued, and fast."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.attention_curve import attention_floor_s, attention_work
from roofplan.costmodels.roofline import Roofline
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.load import names

CARDS = sorted(names("hardware"))
WIDE = np.random.default_rng(0).integers(1, 2**22, (3, 400)).astype(float)


def roofline(name: str) -> Roofline:
    gpu = registry.accelerator(name)
    return Roofline(gpu, load_calibration(gpu))


def arithmetic(r: Roofline) -> str:
    return "bf16" if r.gpu.bf16_flops_per_s else "fp16"


@pytest.mark.parametrize("card", CARDS)
def test_no_product_beats_its_floor(card: str) -> None:
    r = roofline(card)
    for dtype in ("bf16", "fp16", "fp8", "fp8_block", "int8", "nvfp4"):
        try:
            r.gpu.peak_flops_per_s(dtype)
        except BadInput:
            continue
        for m, n, k in (WIDE, np.minimum(WIDE, 300), np.stack([WIDE[0], WIDE[1] % 64 + 1, WIDE[2] % 4096 + 1])):
            price, floor = r.gemm_s(m, n, k, dtype), r.gemm_floor_s(m, n, k, dtype)
            assert np.all(price >= floor)
            assert np.all(np.isfinite(price))


@pytest.mark.parametrize("card", CARDS)
def test_no_attention_beats_its_floor(card: str) -> None:
    r = roofline(card)
    rng = np.random.default_rng(1)
    q = rng.integers(1, 2**20, 300)
    kv = q + rng.integers(0, 2**20, 300) * rng.integers(0, 2, 300)
    heads = 2 ** rng.integers(0, 7, 300)
    groups = np.minimum(2 ** rng.integers(0, 4, 300), heads)
    for window in (0, 1000):
        for backward in (False, True):
            given = {"batch": rng.integers(1, 64, 300), "window_tokens": window}
            price = r.attention_s(
                **given,
                q_tokens=q,
                kv_tokens=kv,
                n_heads=heads,
                n_kv_heads=heads // groups,
                qk_dim=128,
                v_dim=128,
                dtype=arithmetic(r),
                backward=backward,
            )
            work = attention_work(
                batch=given["batch"], q=q, kv=kv, heads=heads, kv_heads=heads // groups, qk=128, v=128, causal=True, window=window, 
                kv_bytes=2, peak=r.gpu.peak_flops_per_s(arithmetic(r)),
            )  # fmt: skip
            assert np.all(price >= attention_floor_s(work, r.gpu) * (2.5 if backward else 1))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 10**6),
    st.integers(1, 400),
    st.sampled_from(["balanced", "power_law_1.01", "power_law_1.2"]),
    st.sampled_from([1, 2, 8, 64]),
)
def test_experts_stay_above_their_arithmetic(tokens: int, experts: int, routing: str, ep: int) -> None:
    r = roofline("h100-sxm")
    price = float(r.moe_layer_s(tokens, hidden=4096, inter=2048, topk=min(8, experts), n_experts=experts, ep=ep, routing=routing))
    assert price >= 6 * tokens * min(8, experts) / ep * 4096 * 2048 / r.gpu.bf16_flops_per_s
    grouped = float(r.grouped_gemm_s(tokens, experts, 2048, 4096))
    assert grouped >= float(r.grouped_gemm_floor_s(tokens, experts, 2048, 4096))


def test_near_measured_products() -> None:
    """vLLM 0.24 on H100, bf16: 8192³ in 1541.7 us, 4096x65536x4096 in 2692.9 us, 64x4096x4096 in 14.8 us."""
    got = roofline("h100-sxm").gemm_s(np.array([8192, 4096, 64]), np.array([8192, 65536, 4096]), np.array([8192, 4096, 4096]))
    assert got == pytest.approx([1541.7e-6, 2692.9e-6, 14.8e-6], rel=0.1)


def test_near_measured_attention() -> None:
    """vLLM 0.24 on H100, head dimension 128: one decode step of 32 sequences, 32 over 8 heads, 8192 cached tokens, in 354 us."""
    r = roofline("h100-sxm")
    got = r.attention_s(batch=32, q_tokens=1, kv_tokens=np.array([8192, 16384]), n_heads=32, n_kv_heads=8, qk_dim=128, v_dim=128)
    assert got == pytest.approx([354e-6, 689e-6], rel=0.05)


def test_a_million_tokens_hold_the_measured_efficiency() -> None:
    r = roofline("h100-sxm")
    seconds = r.attention_s(batch=1, q_tokens=2**20, kv_tokens=2**20, n_heads=32, n_kv_heads=8, qk_dim=128, v_dim=128)
    share = 4 * 32 * 128 * 2**39 / float(seconds) / r.gpu.bf16_flops_per_s
    assert 0.5 < share < 0.8
    plain = r.attention_s(batch=1, q_tokens=2**20, kv_tokens=2**20, n_heads=32, n_kv_heads=8, qk_dim=128, v_dim=128, kernel="fa2")
    assert float(plain) > 1.5 * float(seconds)


def test_backward_takes_the_published_multiple_of_forward() -> None:
    r = roofline("a100-80gb-sxm")
    call = {"batch": 1, "q_tokens": 65536, "kv_tokens": 65536, "n_heads": 32, "n_kv_heads": 8, "qk_dim": 128, "v_dim": 128, "kernel": "fa2"}
    forward, backward = r.attention_s(**call), r.attention_s(**call, backward=True)
    assert float(backward / forward) == pytest.approx(r.calibration.fit("attention.backward").coefficients["time_ratio"], rel=0.01)


def test_chunks_of_a_prefill_cost_about_the_whole() -> None:
    r = roofline("h100-sxm")
    heads = {"batch": 1, "n_heads": 32, "n_kv_heads": 8, "qk_dim": 128, "v_dim": 128}
    whole = float(r.attention_s(q_tokens=32768, kv_tokens=32768, **heads))
    chunks = float(np.sum(r.attention_s(q_tokens=4096, kv_tokens=np.arange(1, 9) * 4096, **heads)))
    assert 1.0 < chunks / whole < 1.3


def test_unfused_attention_pays_for_its_scores() -> None:
    r = roofline("a100-80gb-sxm")
    plain = r.attention_unfused_s(batch=4, q_tokens=2048, kv_tokens=2048, n_heads=32, qk_dim=128, v_dim=128)
    fused = r.attention_s(batch=4, q_tokens=2048, kv_tokens=2048, n_heads=32, n_kv_heads=32, qk_dim=128, v_dim=128)
    assert float(plain) > 3 * float(fused)
    assert float(plain) > 9 * 4 * 32 * 2048**2 / r.gpu.hbm_bytes_per_s


def test_nothing_costs_nothing() -> None:
    r = roofline("h200")
    assert r.gemm_s(np.array([0, 5]), 0, 7).tolist() == [0, 0]
    assert float(r.stream_s(0)) == float(r.host_copy_s(0)) == float(r.grouped_gemm_s(0, 8, 64, 64)) == 0
    empty = r.attention_s(batch=np.array([0]), q_tokens=1, kv_tokens=5, n_heads=8, n_kv_heads=8, qk_dim=64, v_dim=64)
    assert empty.tolist() == [0]


def test_copies_and_adam_by_hand() -> None:
    r = roofline("h100-sxm")
    c = r.calibration.fit("host_copy").coefficients
    assert float(r.host_copy_s(1e9)) == pytest.approx(c["launch_s"] + 1e9 / (31.5e9 * c["link_frac"]))
    assert float(r.host_adam_s(1e9, 4e11)) == pytest.approx(30e9 / (4e11 * c["dram_frac"]))
    assert float(r.stream_s(1e9)) > 1e9 / r.gpu.hbm_bytes_per_s


def test_borrowed_efficiencies_say_so_and_are_less_sure() -> None:
    own, lent = roofline("h100-sxm"), roofline("h20")
    assert own.calibration.transferred_from == ""
    assert lent.calibration.transferred_from == "h100-sxm"
    assert lent.error_frac("gemm.bf16") > 2 * own.error_frac("gemm.bf16")
    wide = lent.interval_frac("gemm.bf16", np.array([1e-5, 1e-2]))
    assert np.all(wide > own.interval_frac("gemm.bf16", np.array([1e-5, 1e-2])))
    assert np.all(own.interval_frac("gemm.bf16", 1e-3, 2) > own.interval_frac("gemm.bf16", 1e-3))


def test_fp4_on_a_card_without_it_is_refused() -> None:
    with pytest.raises(BadInput, match="h100-sxm has no nvfp4 arithmetic; legal: bf16"):
        roofline("h100-sxm").gemm_s(128, 128, 128, "nvfp4")


@pytest.mark.parametrize(("card", "factor"), [("h100-sxm", 2.5), ("h200", 2.5), ("a100-80gb-sxm", 0.99), ("b200", 0.99)])
def test_latent_prompts_take_the_faster_kernel(card: str, factor: float) -> None:
    """The kernel measured on Hopper works on the latents: 2·(576 + 512) FLOPs a pair and head for 2·(192 + 128) of rebuilt keys."""
    r = roofline(card)
    q = np.array([512.0, 4096.0, 16384.0])
    call = {"batch": 1, "q_tokens": q, "kv_tokens": q, "n_heads": 128, "n_kv_heads": 128, "qk_dim": 192, "v_dim": 128, "phase": "prefill"}
    best, measured = r.attention_s(**call), r.attention_s(**call, kernel="measured")
    assert np.all(best <= measured)
    assert measured[1] >= factor * best[1]
    assert np.all(best >= 2 * 128 * (q * (q + 1) / 2) * 320 / r.gpu.bf16_flops_per_s)


@pytest.mark.parametrize("card", ["a100-80gb-sxm", "h100-sxm"])
def test_kv_heads_beyond_the_tables_count_as_more_sequences(card: str) -> None:
    """A decode kernel sees ``batch·kv_heads`` caches: 32 heads of 16 sequences are 8 heads of 64; no table holds more than 8."""
    r = roofline(card)
    kv = np.array([300.0, 2000.0, 17_000.0])
    price = {
        heads: r.attention_s(batch=512 / heads, q_tokens=1, kv_tokens=kv, n_heads=heads, n_kv_heads=heads, qk_dim=128, v_dim=128)
        for heads in (8, 32, 64)
    }
    assert price[32] == pytest.approx(price[8], rel=1e-6)
    assert price[64] == pytest.approx(price[8], rel=1e-6)
