"""Blocks decided in passes, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.denoising import denoising
from tiny_step import tiny_step


def test_a_cached_block() -> None:
    after = denoising(tiny_step(), tokens_per_pass=2.5, block_tokens=8)
    assert (after.yield_tokens, after.linear_flops, after.kv_bytes) == pytest.approx((2.5, 8000, 100))


def test_without_a_cache_the_whole_context_runs_again() -> None:
    assert denoising(tiny_step(), tokens_per_pass=1.0, cached=False).linear_flops == pytest.approx(100 * 1000)
    assert denoising(tiny_step("prefill"), tokens_per_pass=1.0, cached=False) == tiny_step("prefill")
