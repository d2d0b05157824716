"""Drafting while checking, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.acceptance import overlapped_tokens
from roofplan.costmodels.families.overlapped_speculation import overlapped_speculation
from tiny_step import tiny_step


def test_a_pass_lasts_as_long_as_the_slower_side() -> None:
    fast = overlapped_speculation(tiny_step(), acceptance=0.9, draft_tokens=5, draft_frac=0.2)
    slow = overlapped_speculation(tiny_step(), acceptance=0.9, draft_tokens=5, draft_frac=0.4)
    assert (fast.slow_frac, slow.slow_frac) == pytest.approx((0, 1))
    assert fast.yield_tokens == pytest.approx(overlapped_tokens(0.9, 5))
    assert fast.linear_flops == 5000
    assert overlapped_speculation(tiny_step("prefill"), acceptance=0.9, draft_tokens=5, draft_frac=0.2) == tiny_step("prefill")
