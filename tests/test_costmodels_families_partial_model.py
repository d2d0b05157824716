"""Skipped layers and sparse FFNs, by hand: two thirds of tiny's matmuls are FFN but for its norms."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.partial_model import partial_model
from tiny_step import TINY, TINY_MOE, tiny_step


def test_half_of_the_layers() -> None:
    after = partial_model(tiny_step(), layer_frac=0.5)
    assert (after.linear_flops, after.weight_bytes, after.attention_flops, after.kv_bytes) == pytest.approx((500, 100, 50, 50))
    assert after.held_weight_bytes == 200


def test_a_sparse_ffn_saves_its_share() -> None:
    """FFN is 768 of the 1184 parameters of both layers and 8 of the last norm."""
    share = 768 / (2 * (192 + 384 + 2 * TINY.hidden) + TINY.hidden)
    assert partial_model(tiny_step(), ffn_frac=0.5).linear_flops == pytest.approx(1000 * (1 - share / 2))
    assert partial_model(tiny_step(), ffn_frac=0.5, kernel_frac=0.5).linear_flops == pytest.approx(1000)


def test_the_cache_may_be_kept_otherwise() -> None:
    assert partial_model(tiny_step(), layer_frac=0.5, cache_frac=0.75).kv_bytes == pytest.approx(75)


def test_experts_a_token_passes_count_as_ffn() -> None:
    assert partial_model(tiny_step(model=TINY_MOE), ffn_frac=0.5).linear_flops < 1000
