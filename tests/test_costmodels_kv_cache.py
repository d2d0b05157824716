"""Cache per token: the closed form on hand-made models and on published ones."""

from __future__ import annotations

import pytest
from roofplan.costmodels.kv_cache import kv_bytes_per_token
from roofplan.scenarios import registry


@pytest.mark.parametrize(("name", "published"), [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama3.1-405b", 516_096)])
def test_published_bytes(name: str, published: int) -> None:
    assert kv_bytes_per_token(registry.model(name)) == published


def test_by_hand_and_by_width() -> None:
    """Llama-3-8B: 32 layers, 8 KV heads of 128, keys and values: 131,072 bytes at 16 bits, half at 8."""
    model = registry.model("llama3-8b")
    assert kv_bytes_per_token(model) == 2 * 32 * 8 * 128 * 2
    assert kv_bytes_per_token(model, element_bytes=1) == 32 * 8 * 128 * 2
