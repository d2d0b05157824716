"""Kept keys, dense heads and layers, slower kernels and selection, on a pass with round totals."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.sparse_attention import sparse_attention
from tiny_step import tiny_step


def test_a_prefill_query_sees_half_of_the_keys() -> None:
    """10 of 50 keys: a fifth; the cache stays whole."""
    after = sparse_attention(tiny_step("prefill"), kept_tokens=10)
    assert (after.attention_flops, after.kv_bytes) == pytest.approx((20, 100))


def test_dense_parts_slow_kernels_and_selection_add_up() -> None:
    """0.5 dense + 0.5 * 0.2 / 0.4 + 0.05 = 0.8."""
    after = sparse_attention(tiny_step("prefill"), kept_tokens=10, dense_head_frac=0.5, kernel_frac=0.4, select_frac=0.05)
    assert after.attention_flops == pytest.approx(80)
    assert sparse_attention(tiny_step("prefill"), kept_frac=0.43).attention_flops == pytest.approx(43)


def test_never_more_than_dense_but_for_the_selection() -> None:
    assert sparse_attention(tiny_step("prefill"), kept_tokens=10**6, kernel_frac=0.1).attention_flops == 100


def test_decode_reads_the_kept_keys_and_one_of_each_page() -> None:
    after = sparse_attention(tiny_step(), kept_tokens=25, page_tokens=10, when="decode")
    assert (after.kv_bytes, after.other_bytes, after.attention_flops) == pytest.approx((25, 5, 25))
    assert sparse_attention(tiny_step(), kept_tokens=25) == tiny_step()
