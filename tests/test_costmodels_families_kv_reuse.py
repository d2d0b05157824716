"""Cached and independently encoded contexts, on a pass with round totals."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.kv_reuse import kv_reuse
from tiny_step import tiny_step


def test_a_hit_saves_its_tokens_and_their_pairs() -> None:
    after = kv_reuse(tiny_step("prefill"), hit_frac=0.8)
    assert (after.linear_flops, after.attention_flops) == pytest.approx((200, 36))


def test_a_quarter_recomputed() -> None:
    after = kv_reuse(tiny_step("prefill"), hit_frac=1.0, recompute_frac=0.25)
    assert (after.linear_flops, after.attention_flops) == pytest.approx((250, 25))


def test_parts_attend_to_themselves() -> None:
    after = kv_reuse(tiny_step("prefill"), parts=5)
    assert (after.linear_flops, after.attention_flops) == pytest.approx((1000, 20))


def test_a_load_crosses_the_host_link_and_decode_is_unchanged() -> None:
    assert kv_reuse(tiny_step("prefill"), hit_frac=0.5, from_host=True).host_bytes == 50
    assert kv_reuse(tiny_step(), hit_frac=0.5) == tiny_step()
