"""Expert layers: floors by hand, skew and idle experts in the trend, coordinates and labels."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.moe_curve import (
    SKEWS,
    MoeWork,
    moe_coordinates,
    moe_floor_s,
    moe_own_coordinates,
    moe_shape,
    moe_trend_s,
    moe_work,
)
from roofplan.scenarios import registry

H100 = registry.accelerator("h100-sxm")
C = {
    "launch_s": 0.0, "compute_frac": 1.0, "memory_frac": 1.0, "tile": 1.0, "k_fill": 0.0, "h_pass": 0.0, "n_pass": 0.0, "r_pass": 0.0,
    "token_s": 0.0, "skew_1": 0.5, "skew_2": 1.0, "spread": 1.0, "sharpness": 4.0,
}  # fmt: skip


def mixtral(tokens: float, ep: float = 1, skew: float = 0) -> MoeWork:
    return moe_work(tokens, 4096, 14336, 2, 8, 1, ep, skew)


def test_floor_of_many_tokens_is_arithmetic() -> None:
    assert moe_floor_s(mixtral(65536), "bf16", H100) == pytest.approx(6 * 65536 * 2 * 4096 * 14336 / H100.bf16_flops_per_s)


def test_floor_of_one_token_is_its_experts() -> None:
    assert moe_floor_s(mixtral(1), "bf16", H100) == pytest.approx((3 * 2 * 4096 * 14336 * 2 + 4 * 4096) / H100.hbm_bytes_per_s)


def test_trend_reads_the_busy_experts_once() -> None:
    one, all_ = (moe_trend_s(mixtral(t), "bf16", H100, C) for t in (1, 64))
    assert one == pytest.approx(2 / 8 * all_, rel=0.02)


def test_skew_loads_one_rank() -> None:
    fair, skewed = (moe_trend_s(mixtral(65536, 8, s), "bf16", H100, C) for s in (0, SKEWS["power_law_1.2"]))
    assert skewed / fair == pytest.approx(1 + 7 / 8, rel=0.05)
    assert moe_trend_s(mixtral(65536, 1, 2), "bf16", H100, C) == pytest.approx(moe_trend_s(mixtral(65536, 1, 0), "bf16", H100, C), rel=0.05)


def test_coordinates_and_label() -> None:
    work = mixtral(np.array([1.0, 64.0]), 4, 1)
    rows, local, width, skew = moe_coordinates(work)
    assert rows == pytest.approx([2 / 8 * 4096, 64 * 2 / 8 * 4096])
    assert (local, width, skew) == (2, 14336, 2)
    assert moe_own_coordinates(work, np.array(2.0), 3)[1:] == (128, 2, 4)
    assert moe_shape(4096.0, 14336.0, 2.0, 8.0) == "h4096i14336k2e8"
