"""Sustained rates are datasheet times measured fractions, never more than the datasheet."""

from __future__ import annotations

import pytest
from roofplan.costmodels.rates import rates
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration
from roofplan.scenarios.errors import BadInput


@pytest.mark.parametrize("gpu", ["a100-80gb-sxm", "h100-sxm", "h200", "b200", "rtx4090"])
def test_nothing_exceeds_the_datasheet(gpu: str) -> None:
    card, found = registry.accelerator(gpu), rates(registry.cluster(gpu, 1))
    assert 0.3 * card.bf16_flops_per_s < found.linear_flops_per_s <= card.bf16_flops_per_s
    assert found.attention_flops_per_s <= card.bf16_flops_per_s
    assert 0.5 * card.hbm_bytes_per_s < found.hbm_bytes_per_s <= card.hbm_bytes_per_s
    assert found.hbm_bytes == card.hbm_bytes


def test_calibrated_fractions_are_the_defaults() -> None:
    cluster = registry.cluster("a100-80gb-sxm", 1)
    fits = load_calibration(registry.accelerator("a100-80gb-sxm"))
    assert rates(cluster).linear_flops_per_s == 312e12 * fits.fit("gemm.bf16").coefficients["compute_frac"]
    best = rates(cluster, kernel="best").attention_flops_per_s
    assert best == 312e12 * fits.fit("attention.prefill.hd128").coefficients["compute_frac"]
    assert rates(cluster, linear_frac=0.5).linear_flops_per_s == 156e12


def test_across_nodes_a_gpu_has_its_share_of_the_nics() -> None:
    near, far = rates(registry.cluster("h100-sxm", 8)), rates(registry.cluster("h100-sxm", 16))
    assert near.network_bytes_per_s == 450e9
    assert far.network_bytes_per_s == 50e9


def test_a_fraction_over_one_is_refused() -> None:
    with pytest.raises(BadInput, match=r"memory_frac=1.1 of h100-sxm must be between 0 and 1: nothing runs faster than its datasheet"):
        rates(registry.cluster("h100-sxm", 1), memory_frac=1.1)


def test_four_gpus_of_a_mesh_have_three_links_each() -> None:
    """MI300X: 64 GB/s to each peer; a switch gives its whole bandwidth to any group."""
    assert rates(registry.cluster("mi300x", 4)).network_bytes_per_s == pytest.approx(3 * 64e9)
    assert rates(registry.cluster("h100-sxm", 4)).network_bytes_per_s == rates(registry.cluster("h100-sxm", 8)).network_bytes_per_s
