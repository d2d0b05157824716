"""Arrival processes against their means and variances, and streams that do not disturb each other."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim import arrivals


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_gaps_have_the_rate_and_variation_asked_for(cv):
    gaps = np.diff(arrivals.gamma(200_000, 5.0, cv, seed=3), prepend=0)
    assert gaps.mean() == pytest.approx(0.2, rel=4 * cv / np.sqrt(200_000))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_diurnal_rate_follows_the_sine():
    at = arrivals.diurnal(200_000, 10.0, 0.8, period_s=1000.0, seed=1)
    phase = at[at < 19_000] % 1000
    day, night = np.mean((phase > 200) & (phase < 300)), np.mean((phase > 700) & (phase < 800))
    x = np.array([200.0, 300.0]) / 1000 * 2 * np.pi
    expected = 0.1 + 0.8 / (2 * np.pi) * -np.diff(np.cos(x))[0]
    assert day == pytest.approx(expected, rel=0.03)
    assert day / night == pytest.approx(expected / (0.2 - expected), rel=0.05)


def test_bursts_and_lengths():
    assert arrivals.burst(5, 2, 10).tolist() == [0, 0, 10, 10, 20]
    drawn = arrivals.lengths(100_000, 500, 0.5, seed=1)
    assert drawn.mean() == pytest.approx(500, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(0.5, rel=0.02)
    assert arrivals.lengths(3, 128, 0).tolist() == [128] * 3
    some = arrivals.uniform_lengths(10_000, 80, 100)
    assert (some.min(), some.max()) == (80, 100)


def test_another_stream_or_seed_is_independent_and_the_same_one_repeats():
    a = arrivals.lengths(1000, 500, 0.5, seed=1)
    assert np.array_equal(a, arrivals.lengths(1000, 500, 0.5, seed=1))
    for other in (arrivals.lengths(1000, 500, 0.5, seed=2), arrivals.lengths(1000, 500, 0.5, seed=1, stream=arrivals.OUTPUT_STREAM)):
        assert abs(np.corrcoef(a, other)[0, 1]) < 0.15


def test_a_trace_asked_for_more_requests_than_it_has_repeats():
    work = ServeWorkload(
        arrival_s=np.array([0.0, 2.0, 4.0]), prompt_tokens=np.array([1, 2, 3]), output_tokens=np.array([4, 5, 6]),
        block_starts=np.array([0, 1, 1, 3]), block_ids=np.array([7, 8, 9]), block_id_tokens=512,
    )  # fmt: skip
    more = arrivals.first_requests(work, 7)
    assert more.arrival_s.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert more.prompt_tokens.tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert more.block_starts.tolist() == [0, 1, 1, 3, 4, 4, 6, 7]
    assert more.block_ids.tolist() == [7, 8, 9, 7, 8, 9, 7]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrivals.poisson(0, 1), "requests=0 must be at least 1"),
        (lambda: arrivals.poisson(5, 0), "rate_per_s=0 must be more than 0"),
        (lambda: arrivals.diurnal(5, 1, 2), "swing_frac=2 must be between 0 and 1"),
        (lambda: arrivals.burst(5, 0, 1), "burst of 0"),
        (lambda: arrivals.lengths(5, 10, -1), "cv=-1 must be from 0 to 1000"),
        (lambda: arrivals.uniform_lengths(5, 3, 2), "lengths from 3 to 2"),
    ],
)
def test_arrivals_that_cannot_be_are_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call()
