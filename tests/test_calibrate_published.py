"""Efficiencies from published figures, recomputed by hand."""

from __future__ import annotations

import pytest
from roofplan.calibrate.published import families
from roofplan.scenarios import registry


def test_backward_from_iterations_per_second() -> None:
    """H800, ring-flash-attention README: 13.53 ms forward, 51.81 ms with backward."""
    got = families(registry.accelerator("h100-sxm"))["attention.backward"].coefficients["time_ratio"]
    assert got == pytest.approx((51.81 - 13.53) / 13.53, rel=1e-3)


@pytest.mark.parametrize("card", ["a100-80gb-sxm", "h200", "b200", "mi300x"])
def test_every_figure_is_an_efficiency_with_a_source(card: str) -> None:
    for key, fit in families(registry.accelerator(card)).items():
        assert fit.source
        assert fit.n_rows >= 1
        for name, value in fit.coefficients.items():
            assert 0 < value <= 1 or name == "time_ratio", key


def test_host_figures() -> None:
    c = families(registry.accelerator("h100-sxm"))["host_copy"].coefficients
    assert c["link_frac"] == pytest.approx(55.63 / 63, rel=1e-3)
    assert c["dram_frac"] == pytest.approx(300 / 2.57 / 256, rel=1e-3)
