"""Streams of one task on one read of the weights, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.parallel_generation import parallel_generation
from tiny_step import tiny_step


def test_four_streams_of_which_half_counts() -> None:
    after = parallel_generation(tiny_step(), workers=4, useful_frac=0.5, overhead_s=0.1)
    assert (after.yield_tokens, after.linear_flops, after.weight_bytes, after.fixed_s) == pytest.approx((2.5, 4000, 200, 0.1))
    assert parallel_generation(tiny_step("prefill"), workers=4) == tiny_step("prefill")
