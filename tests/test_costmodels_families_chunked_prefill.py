"""Chunks of tokens re-read weights and cache; chunks of layers do not."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.chunked_prefill import chunked_prefill
from roofplan.costmodels.step import prefill_step, weights_total
from tiny_step import TINY, TINY_MOE, tiny_step


def test_four_chunks() -> None:
    whole = prefill_step(TINY, prompt_tokens=100)
    after = chunked_prefill(whole, chunk_tokens=25)
    assert after.weight_bytes == pytest.approx(4 * weights_total(TINY))
    assert after.kv_bytes == pytest.approx(2.5 * whole.held_kv_bytes)
    assert after.held_activation_bytes == pytest.approx(whole.held_activation_bytes / 4)


def test_layers_load_every_expert_once() -> None:
    whole = prefill_step(TINY_MOE, prompt_tokens=1000)
    tokens, layers = (chunked_prefill(whole, chunk_tokens=100, by_layers=b) for b in (False, True))
    assert layers.weight_bytes == pytest.approx(weights_total(TINY_MOE))
    assert tokens.weight_bytes == pytest.approx(10 * weights_total(TINY_MOE), rel=1e-6)


def test_decode_rides_along() -> None:
    assert chunked_prefill(tiny_step(), chunk_tokens=25) == tiny_step()
