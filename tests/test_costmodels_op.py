"""Ops: exact FLOPs and pairs against brute force, and prices that never beat the floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels.op import Attention, Gemm, GroupedGemm, Stream, attended_pairs, flops, price
from roofplan.costmodels.system import make_system
from roofplan.scenarios import registry


def call(q: int, kv: int, *, causal: bool = True, window: int = 0, backward: bool = False) -> Attention:
    return Attention(
        batch=1,
        q_tokens=q,
        kv_tokens=kv,
        n_heads=1,
        n_kv_heads=1,
        qk_dim=1,
        v_dim=1,
        causal=causal,
        window_tokens=window,
        backward=backward,
    )


@given(q=st.integers(1, 40), extra=st.integers(0, 40), window=st.integers(0, 60), causal=st.booleans())
def test_pairs_equal_the_mask_counted_cell_by_cell(q: int, extra: int, window: int, causal: bool) -> None:
    kv = q + extra
    rows, cols = np.arange(extra, kv)[:, None], np.arange(kv)[None, :]
    mask = cols <= rows if causal else np.ones((q, kv), bool)
    if causal and window:
        mask = mask & (cols > rows - window)
    assert attended_pairs(call(q, kv, causal=causal, window=window if causal else 0)) == pytest.approx(mask.sum())


def test_flops_of_each_kind_of_work() -> None:
    assert flops(Gemm(m=2, n=3, k=5)) == 60
    assert flops(GroupedGemm(tokens=7, n_experts=4, n=3, k=5)) == 210
    assert flops(Stream(n_bytes=1e9)) == 0
    forward = flops(call(8, 8))
    assert forward == 2 * 36 * 2
    assert flops(call(8, 8, backward=True)) == 2.5 * forward


@pytest.mark.parametrize("gpu", ["a100-80gb-sxm", "h100-sxm", "h200", "b200", "l40s", "mi300x", "v100-16gb"])
def test_no_price_beats_the_peak(gpu: str) -> None:
    system = make_system(registry.cluster(gpu, 8), "deepspeed")
    peak = system.accelerator.peak_flops_per_s("bf16" if system.accelerator.bf16_flops_per_s else "fp16")
    sizes = 2.0 ** np.arange(0, 21)
    gemm = Gemm(m=sizes[:, None], n=4096.0, k=sizes[None, :])
    if system.accelerator.bf16_flops_per_s:
        assert np.all(price(gemm, system) >= flops(gemm) / peak)
        attention = Attention(batch=1, q_tokens=sizes, kv_tokens=sizes, n_heads=32, n_kv_heads=8, qk_dim=128, v_dim=128)
        assert np.all(price(attention, system) >= flops(attention) / peak)


def test_unfused_attention_costs_more_than_flash_at_length() -> None:
    system = make_system(registry.cluster("a100-80gb-sxm", 8), "megatron-2022")
    shape = {"batch": 1.0, "q_tokens": 8192.0, "kv_tokens": 8192.0, "n_heads": 16.0, "n_kv_heads": 16.0, "qk_dim": 128, "v_dim": 128}
    assert price(Attention(**shape, fused=False), system) > 2 * price(Attention(**shape), system)
