"""Shorter contexts, shorter answers and mixed lengths, on a pass with round totals."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.fewer_tokens import fewer_tokens
from tiny_step import tiny_step


def test_a_fifth_of_a_prompt() -> None:
    after = fewer_tokens(tiny_step("prefill"), tokens_frac=0.2, compressor_frac=0.1)
    assert (after.linear_flops, after.attention_flops, after.held_kv_bytes) == pytest.approx((300, 4, 20))
    assert (after.kv_tokens, after.q_tokens, after.weight_bytes) == pytest.approx((20, 20, 220))


def test_decode_over_a_shorter_context_is_still_one_token() -> None:
    after = fewer_tokens(tiny_step(), tokens_frac=0.2)
    assert (after.linear_flops, after.attention_flops, after.kv_bytes) == pytest.approx((1000, 20, 20))


def test_mixed_lengths_shrink_attention_alone() -> None:
    after = fewer_tokens(tiny_step("train"), mean_tokens=25)
    assert (after.linear_flops, after.attention_flops) == pytest.approx((1000, 25))
    assert fewer_tokens(tiny_step("train"), mean_tokens=500).attention_flops == 100
