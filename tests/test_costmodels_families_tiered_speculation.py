"""A draft from a part of the cache, and a draft of that draft, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.tiered_speculation import tiered_speculation
from tiny_step import tiny_step


def test_one_tier() -> None:
    """The draft reads 200 + 10 of 300 bytes, 0.7 of a step; two of them: 420 bytes more. Acceptance 1/2 yields 1.75."""
    after = tiered_speculation(tiny_step(), budget_tokens=10, draft_tokens=2, acceptance=0.5)
    assert after.yield_tokens == pytest.approx(1.75)
    assert after.hbm_bytes == pytest.approx(300 + 420)


def test_the_small_tier_cheapens_the_middle_one() -> None:
    """(0.7 + 1 * 0.05) / (1 + 1/2) = 0.5 of a step for each of two tokens: a whole step of reads more."""
    after = tiered_speculation(
        tiny_step(), budget_tokens=10, draft_tokens=2, acceptance=0.5, small_frac=0.05, small_acceptance=0.5, small_tokens=1
    )
    assert after.hbm_bytes == pytest.approx(600)
    assert tiered_speculation(tiny_step("prefill"), budget_tokens=10, draft_tokens=2, acceptance=0.5) == tiny_step("prefill")
