"""Chains and trees of guesses, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.speculation import speculation
from roofplan.costmodels.step import weights_read
from tiny_step import TINY_MOE, tiny_step


def test_a_chain_of_two() -> None:
    """Acceptance 1/2: 1 + 1/2 + 1/4 tokens; three are checked on one read of weights and cache; two drafts of a tenth."""
    after = speculation(tiny_step(), draft_tokens=2, acceptance=0.5, draft_frac=0.1)
    assert (after.yield_tokens, after.q_tokens, after.linear_flops) == pytest.approx((1.75, 3, 3000))
    assert (after.weight_bytes, after.kv_bytes, after.slow_frac) == pytest.approx((200, 100, 0.2))


def test_a_tree_checks_more_than_its_depth() -> None:
    after = speculation(tiny_step(), draft_tokens=4, tree_tokens=64, tokens_per_pass=3.0, overhead_frac=0.5)
    assert (after.yield_tokens, after.linear_flops, after.slow_frac) == pytest.approx((3, 64000, 0.5))


def test_more_tokens_touch_more_experts() -> None:
    after = speculation(tiny_step(model=TINY_MOE), draft_tokens=3, acceptance=0.5)
    assert after.weight_bytes == pytest.approx(200 * weights_read(TINY_MOE, 4) / weights_read(TINY_MOE, 1))


def test_prefill_is_not_speculated() -> None:
    assert speculation(tiny_step("prefill"), draft_tokens=3, acceptance=0.5) == tiny_step("prefill")
