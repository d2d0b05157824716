"""Fitting a trend: recovers known coefficients, keeps fractions inside (0, 1), tries the choices it is given."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from roofplan.calibrate.trend_fit import fit_trend, from_free, is_fraction, to_free

SIZE = np.logspace(3, 9, 200)


def price(c: Mapping[str, float], at: np.ndarray) -> np.ndarray:
    return c["launch_s"] + SIZE[at] / (1e12 * c["link_frac"]) ** c["power"]


def test_recovers_what_made_the_data() -> None:
    seconds = price({"launch_s": 4e-6, "link_frac": 0.63, "power": 1.0}, np.arange(200))
    got = fit_trend(price, seconds, {"launch_s": 1e-6, "link_frac": 0.9}, {"power": (0.9, 1.0)}, seed=0)
    assert got == pytest.approx({"launch_s": 4e-6, "link_frac": 0.63, "power": 1.0}, rel=0.01)


def test_impossible_data_stay_physical() -> None:
    seconds = price({"launch_s": 4e-6, "link_frac": 1.7, "power": 1.0}, np.arange(200))
    got = fit_trend(price, seconds, {"launch_s": 1e-6, "link_frac": 0.9}, {"power": (1.0,)}, seed=0)
    assert 0.99 < got["link_frac"] <= 1


def test_free_numbers_and_back() -> None:
    for name, value in (("memory_frac", 0.3), ("l2_gain", 0.9), ("launch_s", 3e-6), ("l2_frac", 4.0)):
        assert from_free(name, to_free(name, value)) == pytest.approx(value)
    assert not is_fraction("l2_frac")
