"""Array helpers: soft maxima between their bounds, chunked evaluation equal to whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.arrays import CHUNK, as_floats, as_integers, in_chunks, soft_max


@settings(derandomize=True, deadline=None)
@given(st.floats(0, 1e12), st.floats(0, 1e12), st.sampled_from([1.0, 1.7, 2.0, 4.0, 50.0]))
def test_soft_max_lies_between_max_and_sum(a: float, b: float, sharpness: float) -> None:
    got = float(soft_max(np.array(a), np.array(b), sharpness))
    assert max(a, b) * (1 - 1e-12) <= got <= (a + b) * (1 + 1e-12) + 1e-290


def test_soft_max_is_the_power_mean_it_says() -> None:
    for sharpness in (1.0, 2.0, 3.0, 4.0):
        want = (3.0**sharpness + 2.0**sharpness) ** (1 / sharpness)
        assert soft_max(np.array(3.0), np.array(2.0), sharpness) == pytest.approx(want)


def test_integers_become_floats_before_they_overflow() -> None:
    m, n, k = as_floats(np.array([2_000_000], np.int32), np.array([65536], np.int32), np.array([65536], np.int32))
    assert (m * n * k)[0] == 2e6 * 65536**2


def test_whole_numbers_round_and_keep_every_bit() -> None:
    """92 days in picoseconds need more bits than a float has; slices and halves too."""
    assert list(as_integers(np.array([7.6, 2.5, -0.4]))) == [8, 2, 0]
    ticks = np.array([7_948_800_000_000_000_001, 3, 5], np.int64)
    assert list(as_integers(ticks)) == ticks.tolist()
    assert list(as_integers(ticks[::2])) == [ticks[0], 5]


def test_chunks_give_the_whole() -> None:
    x = np.arange(5 * CHUNK + 17, dtype=float)
    assert np.array_equal(in_chunks(lambda a, b: a * b, x, np.array(3.0)), 3 * x)
    column = x[: 3 * CHUNK].reshape(3, -1)
    assert np.array_equal(in_chunks(lambda a, b: a + b, column, np.ones((3, 1))), column + 1)
