"""Experts on the host, by hand: 3072 of tiny-moe's parameters are routed."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.expert_cache import expert_cache
from roofplan.costmodels.params import count_params
from roofplan.costmodels.step import decode_step
from tiny_step import TINY_MOE


def test_bytes_by_hand() -> None:
    step = decode_step(TINY_MOE, kv_tokens=10)
    after = expert_cache(step, device_frac=0.25, hit_frac=0.0)
    routed = 2 * 4 * 384 * 2.0
    assert after.held_weight_bytes == pytest.approx(count_params(TINY_MOE).total * 2 - 0.75 * routed)
    assert after.host_held_bytes == pytest.approx(0.75 * routed)
    assert after.host_bytes == pytest.approx(routed / 4)  # one token reads one expert of four


def test_hits_spare_the_link() -> None:
    step = decode_step(TINY_MOE, kv_tokens=10)
    low, high = (expert_cache(step, device_frac=0.1, hit_frac=h).host_bytes for h in (0.31, 0.92))
    assert low / high == pytest.approx(0.69 / 0.08)
