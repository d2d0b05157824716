"""Dollars and energy of a run, against published bills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.price import break_even_spot_frac, price, require_price, usd_per_gpu_h, usd_per_mtoken
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput


def test_bill_of_deepseek_v3() -> None:
    """2.788 M H800-hours at 2 USD are 5.576 M USD. Source: DeepSeek-V3 report table 1."""
    cluster = registry.cluster("h800", 2048)
    hours = 2.788e6 / 2048
    bill = price(cluster, registry.accelerator("h800"), hours * 3600)
    assert float(bill.usd) == pytest.approx(5.576e6)
    assert float(bill.gpu_h) == pytest.approx(2.788e6)


def test_power_of_a_dgx_h100_is_its_datasheet_maximum() -> None:
    cluster, card = registry.cluster("h100-sxm", 8), registry.accelerator("h100-sxm")
    bill = price(cluster, card, 10.0)
    assert bill.power_w == pytest.approx(10_200, rel=0.005)
    assert float(bill.energy_j) == pytest.approx(10 * bill.power_w)
    assert price(cluster, card, 10.0, pue=1.3).power_w == pytest.approx(1.3 * bill.power_w)


def test_usd_per_mtoken_counts_every_gpu_and_takes_arrays() -> None:
    cluster = replace(registry.cluster("h100-sxm", 16), on_demand_usd_per_h=3.6)
    per_token = usd_per_mtoken(cluster, np.array([1.0, 2.0]), np.array([16e3, 16e3]))
    assert per_token == pytest.approx([1.0, 2.0])
    spot = usd_per_mtoken(replace(cluster, spot_usd_per_h=1.2), 1.0, 16e3, market="spot")
    assert float(spot) == pytest.approx(1 / 3)


def test_spot_breaks_even_where_its_lost_time_costs_the_difference() -> None:
    cluster = replace(registry.cluster("h100-sxm", 8), on_demand_usd_per_h=4.0, spot_usd_per_h=1.0)
    lost = break_even_spot_frac(cluster)
    spot_usd_per_useful_h = usd_per_gpu_h(cluster, "spot") / (1 - lost)
    assert spot_usd_per_useful_h == pytest.approx(usd_per_gpu_h(cluster))


def test_unknown_price_is_nan_or_a_sentence() -> None:
    cluster = registry.cluster("h20", 8)
    assert np.isnan(usd_per_gpu_h(cluster))
    assert np.isnan(price(cluster, registry.accelerator("h20"), 1.0).usd)
    assert np.isnan(break_even_spot_frac(cluster))
    assert require_price(registry.cluster("h100-sxm", 8)) == 2.99
    with pytest.raises(BadInput, match=r'h20 has no on-demand price; add on_demand = "2.50 USD/h" or your own figure to its cluster file'):
        require_price(cluster)
    with pytest.raises(BadInput, match=r"a800 has no spot price; add spot ="):
        require_price(registry.cluster("a800", 8), "spot")


def test_wrong_times_are_refused() -> None:
    cluster, card = registry.cluster("h100-sxm", 8), registry.accelerator("h100-sxm")
    with pytest.raises(BadInput, match="the time must not be negative"):
        price(cluster, card, np.array([1.0, -1.0]))
    with pytest.raises(BadInput, match="pue must be at least 1"):
        price(cluster, card, 1.0, pue=0.5)
