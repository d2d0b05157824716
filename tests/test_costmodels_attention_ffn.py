"""Cost of a decoded token on two kinds of card, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.attention_ffn import split_usd, token_work
from roofplan.scenarios import registry
from tiny_step import TINY, TINY_MLA, TINY_MOE


def test_work_by_hand() -> None:
    assert token_work(TINY, 10) == {
        "cache_bytes": 10 * 16, "attention_flops": 2 * 2 * 8 * 10 * 2, "linear_flops": 2 * 2 * 192, "ffn_flops": 2 * 2 * 384,
    }  # fmt: skip
    assert token_work(TINY_MLA, 10)["attention_flops"] == 4 * 2 * 8 * 10 * 2
    assert token_work(TINY_MOE, 10)["ffn_flops"] == 2 * 2 * 384


def test_each_card_costs_its_own_time() -> None:
    h800, h20 = registry.accelerator("h800"), registry.accelerator("h20")
    core = {"cache_bytes": h20.hbm_bytes_per_s, "attention_flops": 0.0}
    work = {**core, "linear_flops": h20.fp8_flops_per_s, "ffn_flops": h800.fp8_flops_per_s / 2}
    assert split_usd(work, h20, 3600.0, h800, 7200.0) == pytest.approx(2 * 1 + 0.5 * 2)


def test_attention_is_bound_by_bytes_or_by_flops() -> None:
    card = registry.accelerator("h800")
    base = {"cache_bytes": 1e9, "attention_flops": 1.0, "linear_flops": 0.0, "ffn_flops": 0.0}
    assert split_usd(base, card, 3600.0, card, 0.0) == pytest.approx(1e9 / card.hbm_bytes_per_s)
    assert split_usd({**base, "attention_flops": 1e15}, card, 3600.0, card, 0.0) == pytest.approx(1e15 / card.fp8_flops_per_s)
