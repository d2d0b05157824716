"""One chunk's graph and the cache of its past, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.chunked_training import chunked_training
from tiny_step import tiny_step


def test_a_quarter_of_the_activations_and_three_caches() -> None:
    """100 tokens of 32 bytes, kept once and with fp32 gradients; a forward more."""
    after = chunked_training(tiny_step("train", held_kv_bytes=0.0), chunk_tokens=25)
    assert (after.held_activation_bytes, after.held_kv_bytes) == pytest.approx((12.5, 9600))
    assert after.linear_flops == pytest.approx(1000 * 4 / 3)


def test_sampled_chunks_tend_to_a_forward_pass() -> None:
    assert chunked_training(tiny_step("train"), chunk_tokens=25, backward_frac=0.0).linear_flops == pytest.approx(1000 / 3)
    assert chunked_training(tiny_step(), chunk_tokens=25) == tiny_step()
