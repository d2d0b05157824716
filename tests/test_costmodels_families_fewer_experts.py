"""Pruned experts, by hand: 3072 of tiny-moe's 4072 parameters are routed."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.fewer_experts import fewer_experts
from roofplan.costmodels.params import count_params
from tiny_step import TINY_MOE, tiny_step


def test_only_routed_weights_shrink() -> None:
    routed = 3072 / count_params(TINY_MOE).total
    after = fewer_experts(tiny_step(model=TINY_MOE), kept_frac=0.5)
    assert after.held_weight_bytes == pytest.approx(200 * (1 - 0.5 * routed))
    assert after.linear_flops == 1000


def test_fewer_are_read_than_kept() -> None:
    after = fewer_experts(tiny_step(model=TINY_MOE), read_frac=0.5)
    assert after.held_weight_bytes == 200
    assert after.weight_bytes < 200


def test_a_dense_model_has_none() -> None:
    assert fewer_experts(tiny_step(), kept_frac=0.1) == tiny_step()
