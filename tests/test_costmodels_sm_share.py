"""A share of a card's SMs: compute in proportion, bandwidth until it saturates, never under the floor."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.serving_ops import serve_system
from roofplan.costmodels.sm_share import SATURATING_SM_FRAC, bandwidth_frac, sm_share
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import serving_engine

SYSTEM = serve_system(registry.cluster("h100-sxm", 1), serving_engine("vllm"))


def test_bandwidth_saturates():
    assert [bandwidth_frac(x) for x in (0.1, 0.2, SATURATING_SM_FRAC, 0.7, 1.0)] == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0])


def test_the_whole_card_is_the_card():
    whole = sm_share(SYSTEM, 1.0)
    m = np.array([1.0, 64.0, 4096.0])
    assert np.array_equal(whole.roofline.gemm_s(m, 4096, 4096), SYSTEM.roofline.gemm_s(m, 4096, 4096))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_large_products_slow_down_by_the_share_and_small_ones_by_the_bandwidth(share):
    part = sm_share(SYSTEM, share)
    big = float(part.roofline.gemm_s(8192, 8192, 8192) / SYSTEM.roofline.gemm_s(8192, 8192, 8192))
    assert big == pytest.approx(1 / share, rel=0.1)
    lean = float(part.roofline.stream_s(1e9) / SYSTEM.roofline.stream_s(1e9))
    assert lean == pytest.approx(1 / bandwidth_frac(share), rel=0.02)
    for m in (1, 64, 1024):
        assert part.roofline.gemm_s(m, 4096, 4096) >= part.roofline.gemm_floor_s(m, 4096, 4096)


def test_more_of_the_card_is_never_slower():
    shares = [sm_share(SYSTEM, x) for x in (0.1, 0.3, 0.5, 0.7, 0.9)]
    for m in (1.0, 256.0, 8192.0):
        times = [float(s.roofline.gemm_s(m, 8192, 8192)) for s in shares]
        assert times == sorted(times, reverse=True)


def test_what_the_other_leaves_bounds_the_bandwidth():
    part = sm_share(SYSTEM, 0.5, left_bandwidth_frac=0.6)
    assert part.accelerator.hbm_bytes_per_s == pytest.approx(0.6 * SYSTEM.accelerator.hbm_bytes_per_s)
    assert part.accelerator.hbm_bytes == SYSTEM.accelerator.hbm_bytes


@pytest.mark.parametrize(("share", "left"), [(0.0, 1.0), (1.1, 1.0), (0.5, 0.0)])
def test_shares_that_cannot_be(share, left):
    with pytest.raises(BadInput, match="both must be over 0 and at most 1"):
        sm_share(SYSTEM, share, left_bandwidth_frac=left)
