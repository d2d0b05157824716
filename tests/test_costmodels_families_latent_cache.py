"""Latents in place of heads, and shards of a latent, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.latent_cache import latent_cache
from tiny_step import TINY_MLA, tiny_step


def test_two_shards_keep_the_rope_key_whole() -> None:
    """6 + 2 elements become 3 + 2, five eighths of the bytes; FLOPs (12 + 2 * 2) / (12 + 2)."""
    after = latent_cache(tiny_step(model=TINY_MLA), latent_dims=6, rope_dims=2, shards=2)
    assert (after.kv_bytes, after.held_kv_bytes, after.attention_flops) == pytest.approx((62.5, 62.5, 100 * 16 / 14))


def test_heads_become_a_latent() -> None:
    """8 elements a token and layer become 1 + 1; FLOPs do not fall."""
    after = latent_cache(tiny_step(), latent_dims=1, rope_dims=1)
    assert (after.kv_bytes, after.attention_flops) == pytest.approx((25, 100))
