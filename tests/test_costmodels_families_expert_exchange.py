"""All-to-all bytes of one pass, by hand."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.expert_exchange import expert_exchange
from tiny_step import TINY_MOE, tiny_step


def test_bytes_of_a_decode_pass() -> None:
    """1 token, 1 expert, 8 wide, 2 + 2 bytes, 2 layers, 3 of 4 ranks are others: 48; two messages a layer."""
    after = expert_exchange(tiny_step(model=TINY_MOE), ep=4)
    assert (after.network_bytes, after.n_hops) == pytest.approx((48, 4))
    assert expert_exchange(tiny_step("train", TINY_MOE), ep=4).network_bytes == pytest.approx(2 * 100 * 48)


def test_narrow_exchange_costs_projections() -> None:
    """Half the width: half the bytes; 2 layers of two 8 x 4 matrices are 128 parameters."""
    after = expert_exchange(tiny_step(model=TINY_MOE), ep=4, width_frac=0.5)
    assert after.network_bytes == pytest.approx(24)
    assert after.linear_flops == pytest.approx(1000 + 2 * 128)
    assert after.held_weight_bytes == pytest.approx(200 + 256)


def test_what_stays_is_not_sent() -> None:
    assert expert_exchange(tiny_step(model=TINY_MOE), ep=4, local_frac=0.75).network_bytes == pytest.approx(12)
    assert expert_exchange(tiny_step(model=TINY_MOE), ep=1).network_bytes == 0
