"""Token budgets, shares and key channels, on a pass with round totals."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.kv_eviction import kv_eviction
from tiny_step import tiny_step


def test_a_share_is_read_and_held() -> None:
    after = kv_eviction(tiny_step(), keep_frac=0.2)
    assert (after.kv_bytes, after.held_kv_bytes, after.attention_flops) == pytest.approx((20, 20, 20))
    assert (after.linear_flops, after.weight_bytes) == (1000, 200)


def test_a_budget_and_its_window_never_exceed_the_context() -> None:
    assert kv_eviction(tiny_step(), budget_tokens=4, window_tokens=21).kv_bytes == pytest.approx(25)
    assert kv_eviction(tiny_step(), budget_tokens=500).kv_bytes == 100


def test_key_channels_save_half_of_their_share() -> None:
    assert kv_eviction(tiny_step(), key_channel_frac=0.6).held_kv_bytes == pytest.approx(80)


def test_a_prefill_computes_all_and_holds_all_until_its_end() -> None:
    before = tiny_step("prefill")
    after = kv_eviction(before, keep_frac=0.2, every_step=False)
    assert (after.attention_flops, after.held_kv_bytes) == (100, 100)
    assert kv_eviction(before, keep_frac=0.2).held_kv_bytes == pytest.approx(20)
