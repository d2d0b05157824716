"""Share of experts that tokens touch: closed form, brute force, and what skew does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.experts import expert_share_read


def test_uniform_routing_in_closed_form() -> None:
    assert expert_share_read(128, 8, 16) == pytest.approx(1 - (1 - 8 / 128) ** 16)
    assert expert_share_read(4, 4, 1) == 1


def test_skew_lowers_coverage_towards_what_is_measured() -> None:
    """Qwen3-30B-A3B covers 48, under 70 and 86.3 % of its experts with 16, 64 and 128 tokens: one exponent halves the error of uniform."""
    tokens, measured = np.array([16.0, 64.0, 128.0]), np.array([0.48, 0.70, 0.863])
    skewed, uniform = (expert_share_read(128, 8, tokens, skew=s) for s in (1.0, 0.0))
    assert np.all(skewed < uniform)
    assert np.abs(skewed - measured).mean() < 0.5 * np.abs(uniform - measured).mean()


def test_brute_force() -> None:
    """Draws of every token's experts with the stated chances: equal within the noise of 4000 trials."""
    rng = np.random.default_rng(7)
    weight = np.arange(1, 9, dtype=float) ** -0.5
    q = 2 * weight / weight.sum()
    hit = (rng.random((4000, 5, 8)) < q).any(axis=1).mean()
    assert expert_share_read(8, 2, 5, skew=0.5) == pytest.approx(hit, abs=0.01)


@settings(derandomize=True, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 16), st.floats(0, 5000), st.floats(0, 2))
def test_a_share_between_one_token_and_all(n_experts: int, top_k: int, tokens: float, skew: float) -> None:
    k = min(top_k, n_experts)
    share = float(expert_share_read(n_experts, k, tokens, skew=skew))
    assert -1e-9 <= share <= 1 + 1e-9
    assert float(expert_share_read(n_experts, k, 1, skew=skew)) == pytest.approx(k / n_experts)
    assert float(expert_share_read(n_experts, k, tokens + 1, skew=skew)) >= share - 1e-9
