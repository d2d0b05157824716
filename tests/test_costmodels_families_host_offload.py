"""Cache and weights on the host behind a buffer, on a pass with round totals."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.host_offload import host_offload
from tiny_step import tiny_step


def test_one_part_at_work_and_one_on_its_way() -> None:
    """100 bytes in 2 layers of 5 parts: 10 each, two buffers."""
    after = host_offload(tiny_step(), kv_frac=1.0, parts_per_layer=5)
    assert (after.held_kv_bytes, after.host_held_bytes, after.host_bytes) == pytest.approx((20, 100, 100))
    assert after.kv_bytes == 100


def test_a_prefill_in_chunks_reads_the_past_again() -> None:
    """Four chunks of 25: written once, and re-read 1.5 times."""
    assert host_offload(tiny_step("prefill"), kv_frac=1.0, chunk_tokens=25).host_bytes == pytest.approx(100 * 2.5)


def test_weights_pass_through_two_layers_of_buffer() -> None:
    after = host_offload(tiny_step(), weight_frac=0.5)
    assert (after.held_weight_bytes, after.host_held_bytes, after.host_bytes) == pytest.approx((200, 100, 100))


def test_nothing_is_lost() -> None:
    after = host_offload(tiny_step(), kv_frac=0.3, buffers=0)
    assert after.held_kv_bytes + after.host_held_bytes == pytest.approx(100)
