"""The error model: intervals that hold what they say, wider beyond the data; sums of prices."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.calibrate.errors_model import combine, coverage, learn

RNG = np.random.default_rng(3)
NONE = np.zeros(0)


def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
    seconds = 10 ** RNG.uniform(-6, -2, n)
    return seconds, RNG.normal(size=n) * np.where(seconds < 1e-4, 0.2, 0.03)


def test_intervals_hold_eighty_percent_in_each_regime() -> None:
    model = learn(*sample(2000), NONE, NONE)
    seconds, error = sample(4000)
    for part in (seconds < 5e-5, seconds > 2e-4):
        assert coverage(seconds[part], error[part], model) == pytest.approx(0.8, abs=0.05)
    assert model.widths_frac[0] > 3 * model.widths_frac[-1]


def test_beyond_the_data_is_wider() -> None:
    seconds, error = sample(1000)
    assert learn(seconds, error, NONE, NONE).beyond_frac == 0
    octaves = RNG.choice([1.0, 2.0], 4000)
    far = RNG.normal(size=4000) * (0.1 + 0.2 * octaves)
    assert learn(seconds, RNG.normal(size=1000) * 0.1, far, octaves).beyond_frac == pytest.approx(0.2 * 1.28, rel=0.25)
    assert learn(seconds, error, RNG.normal(size=500) * 1e-3, np.ones(500)).beyond_frac == 0


def test_no_rows_means_little_known() -> None:
    model = learn(NONE, NONE, NONE, NONE)
    assert (model.median_frac, model.p90_frac) == (0.2, 0.5)


def test_sum_lies_between_independent_and_shared() -> None:
    got = combine(np.array([1.0, 1.0]), np.array([0.1, 0.1]))
    assert 0.1 / np.sqrt(2) < got < 0.1
    assert combine(np.array([5.0]), np.array([0.07])) == pytest.approx(0.07)
    assert combine(np.zeros(2), np.ones(2)) == 0
