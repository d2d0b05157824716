"""Windows, strides and states in place of full attention, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.hybrid_attention import hybrid_attention
from roofplan.costmodels.step import layer_params_active
from tiny_step import TINY, tiny_step


def test_window_layers() -> None:
    """A quarter full; the others see 20 of 100 keys: cache 0.25 + 0.75 * 0.2; causal pairs 0.2 * 1.8 = 0.36 of all."""
    decode = hybrid_attention(tiny_step(), full_layer_frac=0.25, window_tokens=20)
    assert (decode.kv_bytes, decode.attention_flops) == pytest.approx((40, 40))
    prefill = hybrid_attention(tiny_step("prefill"), full_layer_frac=0.25, window_tokens=20)
    assert prefill.attention_flops == pytest.approx(25 + 75 * 0.36)


def test_every_sixteenth_token_and_two_gates() -> None:
    after = hybrid_attention(tiny_step(), stride=16, gates=2)
    assert (after.kv_bytes, after.attention_flops) == pytest.approx((6.25, 6.25))
    assert after.linear_flops == pytest.approx(1000 * (1 + 2 * 2 * 64 / layer_params_active(TINY)))


def test_states_do_not_grow() -> None:
    """Two heads of 4 x 4 in two layers, 2 bytes: 128 held and, read and written, 256 moved; a token costs 4 d² = 64 of 2 * 8 * 100."""
    after = hybrid_attention(tiny_step(), state_dim=4)
    assert (after.kv_bytes, after.held_kv_bytes, after.other_bytes) == pytest.approx((0, 128, 256))
    assert after.attention_flops == pytest.approx(100 * 64 / 1600)


def test_state_prefill_follows_the_published_count() -> None:
    """6 d² + 3 C d + C² = 96 + 24 + 4 a token with C = 2, d = 4, against (4 + 4) * 100 of causal attention."""
    after = hybrid_attention(tiny_step("prefill"), state_dim=4, chunk_tokens=2)
    assert after.attention_flops == pytest.approx(100 * 124 / 800)


def test_a_window_wider_than_the_context_is_full_attention() -> None:
    after = hybrid_attention(tiny_step("prefill"), window_tokens=1000)
    assert (after.attention_flops, after.kv_bytes) == pytest.approx((100, 100))
