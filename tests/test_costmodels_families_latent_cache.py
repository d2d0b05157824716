"""Latents in place of heads, and shards of a latent, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.latent_cache import latent_cache
from tiny_step import TINY_MLA, tiny_step


def test_two_shards_keep_the_rope_key_whole() -> None:
    """6 + 2 elements become 3 + 2, five eighths of the bytes; FLOPs (12 + 2 * 2) / (12 + 2)."""
    after = latent_cache(tiny_step(model=TINY_MLA), latent_dims=6, rope_dims=2, shards=2)
    assert (after.kv_bytes, after.held_kv_bytes, after.attention_flops) == pytest.approx((62.5, 62.5, 100 * 16 / 14))


def test_a_rank_of_a_shard_projects_all_heads() -> None:
    """Its own 2 heads take 2·6·8 parameters of queries and 2·4·8 of outputs a layer, of 1,460 in 2 layers; the other rank's as many."""
    after = latent_cache(tiny_step(model=TINY_MLA), latent_dims=6, rope_dims=2, shards=2)
    wider = 1 + 2 * (96 + 64) / 1460
    assert (after.linear_flops, after.weight_bytes, after.held_weight_bytes) == pytest.approx((1000 * wider, 200 * wider, 200 * wider))
    whole = latent_cache(tiny_step(model=TINY_MLA), latent_dims=6, rope_dims=2)
    assert (whole.linear_flops, whole.weight_bytes) == (1000, 200)


def test_heads_become_a_latent() -> None:
    """8 elements a token and layer become 1 + 1; FLOPs do not fall."""
    after = latent_cache(tiny_step(), latent_dims=1, rope_dims=1)
    assert (after.kv_bytes, after.attention_flops) == pytest.approx((25, 100))
