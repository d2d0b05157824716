"""Element-wise passes over what L2 still holds: the formula by hand, the floor, and cards on which none was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.pass_curve import pass_floor_s, pass_trend_s
from roofplan.costmodels.roofline import Roofline
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration


def test_bytes_in_l2_and_in_memory_by_hand() -> None:
    """1 TB/s reached whole, half of a 40 MB L2 used at four times that: 10 MB take 2.5 us, 30 MB 5 + 10, after a launch of 2."""
    gpu = replace(registry.accelerator("rtx4090"), hbm_bytes_per_s=1e12, l2_bytes=40_000_000)
    c = {"launch_s": 2e-6, "memory_frac": 1.0, "l2_gain": 0.75, "near_frac": 0.5}
    assert pass_trend_s(np.array([10e6, 30e6]), gpu, c) == pytest.approx([4.5e-6, 17e-6])
    assert pass_floor_s(np.array([10e6, 50e6]), gpu) == pytest.approx([0.0, 10e-6])


@pytest.mark.parametrize("card", ["rtx4090", "rtx-pro-6000"])
def test_measured_passes_undercut_streams_in_l2_and_meet_them_far_outside(card: str) -> None:
    gpu = registry.accelerator(card)
    roofline = Roofline(gpu, load_calibration(gpu))
    size = np.exp2(np.arange(16, 40.0))
    price, through_memory = roofline.pass_s(size), roofline.stream_s(size)
    assert np.all(np.diff(price) > 0)
    assert np.all(price >= pass_floor_s(size, gpu))
    inside = (size > 8e6) & (size < gpu.l2_bytes / 4)
    assert np.all(price[inside] < 0.8 * through_memory[inside])
    assert price[-1] == pytest.approx(through_memory[-1], rel=0.15)
    assert float(roofline.pass_s(0)) == 0


def test_elsewhere_a_pass_is_a_stream() -> None:
    gpu = registry.accelerator("h200")
    roofline = Roofline(gpu, load_calibration(gpu))
    size = np.exp2(np.arange(0, 40.0))
    assert np.array_equal(roofline.pass_s(size), roofline.stream_s(size))
