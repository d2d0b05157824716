"""Matrix products: bytes and floors by hand; the trend's tiles, waves, splitting of k and quantisation."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.gemm_curve import gemm_bytes, gemm_floor_s, gemm_trend_s, weight_bytes
from roofplan.scenarios import registry

H100 = registry.accelerator("h100-sxm")
C = {"launch_s": 0.0, "compute_frac": 1.0, "memory_frac": 1.0, "k_fill": 0.0, "narrow": 0.0, "split": 1e9, "sharpness": 4.0}


def test_bytes_by_hand() -> None:
    assert gemm_bytes(3, 5, 7, "bf16") == 2 * (21 + 35 + 15)
    assert gemm_bytes(3, 5, 7, "fp8") == 2 * 21 + 35 + 2 * 15
    assert gemm_bytes(3, 5, 7, "fp32") == 4 * (21 + 35 + 15)
    assert weight_bytes("int4_wo") == weight_bytes("nvfp4") == 0.5 + 1 / 16


def test_floor_is_the_larger_ceiling() -> None:
    assert gemm_floor_s(8192, 8192, 8192, "bf16", H100) == pytest.approx(2 * 8192**3 / H100.bf16_flops_per_s)
    assert gemm_floor_s(1, 8192, 8192, "bf16", H100) == pytest.approx(2 * (8192**2 + 2 * 8192) / H100.hbm_bytes_per_s)


def test_a_partial_wave_costs_a_whole_one() -> None:
    one = gemm_trend_s(128 * 11, 128 * 12, 8192, "bf16", H100, C)  # 132 tiles on 132 SMs
    more = gemm_trend_s(128 * 11 + 1, 128 * 12, 8192, "bf16", H100, C)
    assert one == pytest.approx(2 * 1408 * 1536 * 8192 / H100.bf16_flops_per_s, rel=0.1)
    assert more > 1.2 * one


def test_splitting_k_fills_the_card() -> None:
    few = gemm_trend_s(64, 64, 65536, "bf16", H100, C)
    split = gemm_trend_s(64, 64, 65536, "bf16", H100, {**C, "split": 0.5})
    assert split < few / 10


def test_quantising_adds_rows_and_bytes() -> None:
    plain = {**C, "quantise_frac": 0.5, "row_s": 1e-6, "l2_gain": 0.0, "spill": 0.0, "l2_frac": 1.0}
    extra = gemm_trend_s(4096, 4096, 4096, "fp8", H100, plain) - gemm_trend_s(4096, 4096, 4096, "fp8", H100, C)
    assert extra == pytest.approx(3 * 4096**2 / (0.5 * H100.hbm_bytes_per_s) + 4096e-6 / 132)


def test_ragged_rows_wait_for_the_host() -> None:
    c = {**C, "host_s": 1e-4, "ragged": 0.3}
    assert gemm_trend_s(64, 512, 512, "fp8", H100, c) == pytest.approx(1e-4, rel=1e-3)
    assert gemm_trend_s(65, 512, 512, "fp8", H100, c) == pytest.approx(1.3e-4, rel=1e-3)


def test_broadcasts() -> None:
    assert gemm_trend_s(np.ones((3, 1)), np.ones(4), 7, "bf16", H100, C).shape == (3, 4)
