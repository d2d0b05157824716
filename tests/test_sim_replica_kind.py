"""What a replica takes from its workload: how much longer than the mean the longest of its decodes is."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.replica_kind import SAMPLED, excess_tokens


def work(prompt: list[int], output: list[int]) -> ServeWorkload:
    return ServeWorkload(arrival_s=np.zeros(len(prompt)), prompt_tokens=np.array(prompt), output_tokens=np.array(output))


def test_equal_requests_differ_by_what_they_have_answered() -> None:
    """100 tokens and an answer of 800: 100 to 900 cached, 500 on average, in steps of 100; of many the longest is in the last step."""
    found = excess_tokens(work([100] * 10, [800] * 10), 200)
    assert found[:2] == (0.0, 0.0)
    assert np.all(np.diff(found[1:]) >= 0)
    assert found[3] == pytest.approx(250)  # rank 3/4: the step from 700 to 800
    assert found[200] == pytest.approx(350)


def test_requests_count_by_the_steps_they_stay() -> None:
    """Short answers of long prompts are hardly ever among those that decode: 1 step in 1,000 of theirs to 999 of the others."""
    long_prompts, all_short = excess_tokens(work([9000, 1000], [1, 999]), 9), excess_tokens(work([1000], [999]), 9)
    assert long_prompts[9] == pytest.approx(all_short[9], abs=60)


def test_a_sample_stands_for_many_requests() -> None:
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(100, 4000, 40 * SAMPLED), rng.integers(1, 1000, 40 * SAMPLED)
    whole = np.concatenate([prompt + rng.random(len(prompt)) * output for _ in range(4)])
    n = 100
    weights = np.tile(output, 4) / (4 * output.sum())
    drawn = rng.choice(whole, (4000, n), p=weights)
    expected = float((drawn.max(1) - drawn.mean(1)).mean())
    assert excess_tokens(work(prompt.tolist(), output.tolist()), n)[n] == pytest.approx(expected, rel=0.05)
