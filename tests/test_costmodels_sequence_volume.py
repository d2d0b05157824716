"""Bytes per layer of each way to split a sequence, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels import sequence_volume as v


def test_by_hand() -> None:
    """8 tokens of 4 heads of 2 (hidden 8) on 4 ranks, 2 bytes: 2 tokens a rank."""
    assert v.megatron_sp(8, 8, 4) == 4 * 8 * 8 * 2 * 3 / 4
    assert v.ulysses(8, 4, 4, 2, 4) == 2 * 2 * 2 * (4 + 4 + 4 + 4) * 3 / 4
    assert v.ulysses(8, 4, 1, 2, 4) == v.ulysses(8, 4, 4, 2, 4)  # one KV head is copied to all four ranks
    assert v.ring(8, 2, 2, 4) == 3 * 2 * (2 * 2 * 2 * 2)
    assert v.all_gather_kv(8, 2, 2, 4) == 2 * 8 * 2 * 2 * 2 * 3 / 4
    assert v.token_ring(8, 4, 2, 4) == 3 * 2 * 4 * (2 * 2 + 4)
    assert v.linear_state(1, 16, 128, 128) == 16 * 128 * 128 * 2


@given(st.integers(1, 10).map(lambda k: 2**k), st.integers(1, 100).map(lambda n: 1024 * n))
def test_ulysses_is_p_times_less_than_megatron(ranks: int, tokens: int) -> None:
    heads = max(ranks, 8)
    ratio = v.megatron_sp(tokens, heads * 128, ranks) / v.ulysses(tokens, heads, heads, 128, ranks)
    assert ratio == pytest.approx(ranks)


def test_no_ranks_no_bytes() -> None:
    for volume in (v.megatron_sp(8, 8, 1), v.ulysses(8, 4, 4, 2, 1), v.ring(8, 2, 2, 1), v.token_ring(8, 4, 2, 1)):
        assert volume == 0


def test_megatron_does_not_shrink_with_ranks_and_ring_does_not_either() -> None:
    ranks = np.array([2, 4, 8, 16, 64])
    assert np.all(np.diff(v.megatron_sp(4096, 4096, ranks)) > 0)
    assert np.all(np.diff(v.ring(4096, 8, 128, ranks)) > 0)
    assert np.all(np.diff(v.ulysses(4096, 64, 64, 128, ranks)) < 0)


def test_token_ring_loses_to_a_ring_of_few_kv_heads() -> None:
    """Its outputs carry all query heads: half a ring's K and V for multi-head attention, twice for 4:1 groups."""
    assert v.token_ring(24000, 32, 128, 4) < v.ring(24000, 32, 128, 4)
    assert v.token_ring(24000, 32, 128, 4) > v.ring(24000, 8, 128, 4)


def test_lightseq_counts_fourteen_against_three() -> None:
    assert v.megatron_step(1000, 4096, recompute=True) / v.dist_attention_step(1000, 4096) == pytest.approx(14 / 3)
    assert v.megatron_step(1000, 4096, recompute=False) == 10 * 1000 * 4096 * 2
