"""Landmarks, budgets and host copies of retrieved cache, on a pass with round totals."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.kv_retrieval import kv_retrieval
from tiny_step import tiny_step


def test_reads_the_budget_and_a_key_a_page() -> None:
    """10 of 100 bytes, and 100/2/8 of keys, one a page of 8; everything stays, with its landmarks."""
    after = kv_retrieval(tiny_step(), read_frac=0.1, page_tokens=8)
    assert after.kv_bytes == pytest.approx(10 + 6.25)
    assert after.held_kv_bytes == pytest.approx(106.25)
    assert after.attention_flops == pytest.approx(10)


def test_on_the_host_only_misses_cross_the_link() -> None:
    after = kv_retrieval(tiny_step(), read_frac=0.1, page_tokens=50, on_host=True, hit_frac=0.6)
    assert after.awaited_host_bytes == pytest.approx(4)
    assert after.host_bytes == 0
    assert after.kv_bytes == pytest.approx(10 + 1 + 4)  # what crossed is written before it is read
    assert after.host_held_bytes == 100
    assert after.held_kv_bytes == pytest.approx(10 + 1)


def test_rebuilt_keys_leave_values_on_the_host() -> None:
    """Rank 2 of 8 elements a token: keys cost a quarter of the cache on the device, and half of it waits on the host.

    2 layers of 2 x 4 basis elements, 32 bytes; 10 keys are rebuilt in 2·10·8 FLOPs a layer, and written as the 10 values are.
    """
    after = kv_retrieval(tiny_step(), read_tokens=10, page_tokens=50, on_host=True, key_rank=2, resident_tokens=4)
    assert after.held_kv_bytes == pytest.approx(10 + 1 + 25 + 4 + 32)
    assert after.host_held_bytes == 50
    assert after.awaited_host_bytes == pytest.approx(5)
    assert after.kv_bytes == pytest.approx(10 + 1 + 2.5 + 5 + 5 + 32)
    assert after.linear_flops == pytest.approx(1000 + 2 * 2 * 10 * 8)


def test_choosing_less_often_costs_less() -> None:
    often, rarely = (kv_retrieval(tiny_step(), read_frac=0.1, page_tokens=8, on_host=True, select_every=n) for n in (1.0, 5.0))
    assert rarely.awaited_host_bytes == pytest.approx(often.awaited_host_bytes / 5)
    assert rarely.kv_bytes < often.kv_bytes


def test_a_prefill_is_exact() -> None:
    assert kv_retrieval(tiny_step("prefill"), read_frac=0.1) == tiny_step("prefill")
