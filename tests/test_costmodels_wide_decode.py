"""Decode attention of many heads over one cached head: between its floor and the generic kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.serving_attention import decode_attention_s
from roofplan.costmodels.serving_ops import serve_system
from roofplan.costmodels.wide_decode import wide_decode_s
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, serving_engine

SYSTEM = serve_system(registry.cluster("h800", 8), serving_engine("vllm"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(b=st.integers(1, 512), kv=st.integers(1, 200_000), dtype=st.sampled_from(["bf16", "fp8"]))
def test_never_under_the_floor(b: int, kv: int, dtype: str) -> None:
    """``max(4·b·heads·kv·d/peak, b·kv·2·d·bytes/bandwidth)``."""
    gpu = SYSTEM.accelerator
    got = float(wide_decode_s(SYSTEM.roofline, np.array(float(b)), np.array(float(kv)), 64, 1, 256, dtype))
    flops, moved = 4 * b * 64 * kv * 256, b * kv * 512 * (2 if dtype == "bf16" else 1)
    assert got >= max(flops / gpu.peak_flops_per_s("bf16"), moved / gpu.hbm_bytes_per_s)


def test_long_caches_come_near_the_bandwidth_and_8_bits_halve_them() -> None:
    one = np.array([64.0])
    wide, narrow = (float(wide_decode_s(SYSTEM.roofline, one, np.array([65536.0]), 16, 1, 256, d)[0]) for d in ("bf16", "fp8"))
    moved = 64 * 65536 * 512 * 2
    assert moved / SYSTEM.accelerator.hbm_bytes_per_s / wide > 0.8
    assert wide / narrow == pytest.approx(2, rel=0.15)


def test_step_3_decodes_with_it() -> None:
    model = registry.model("step-3")
    seqs = np.array([128.0])
    whole = decode_attention_s(model, EnginePlan(kv_dtype="fp8"), SYSTEM, seqs, 4096.0)
    assert whole == pytest.approx(61 * wide_decode_s(SYSTEM.roofline, seqs, np.array([4096.0]), 64, 1, 256, "fp8"))
