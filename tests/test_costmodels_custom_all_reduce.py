"""A serving engine's own all-reduce: which algorithm a message takes, its price by hand, and jumps that stay jumps."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.collectives import Network
from roofplan.costmodels.custom_all_reduce import (
    ALGORITHMS,
    KIB,
    MIB,
    algorithm,
    custom_all_reduce_coordinates,
    custom_all_reduce_trend_s,
    start_coefficients,
)
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration

C = {
    "one_shot_s": 1e-6, "two_shot_s": 2e-6, "switch_s": 3e-6, "library_s": 4e-6, "hop_s": 1e-6, "ring_frac": 0.5,
    "one_shot_frac": 0.5, "two_shot_frac": 0.5, "switch_frac": 0.5, "library_frac": 0.5, "sharpness": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "ranks", "last_of_each"),
    [
        ("8.0", 2, (8 * MIB, 0, 0)),
        ("8.0", 4, (512 * KIB, 8 * MIB, 0)),
        ("8.0", 8, (256 * KIB, 8 * MIB, 0)),
        ("9.0", 2, (8 * MIB, 0, 64 * MIB)),
        ("9.0", 8, (256 * KIB, 0, 64 * MIB)),
        ("10.0", 4, (512 * KIB, 2 * MIB, 32 * MIB)),
        ("10.0", 6, (256 * KIB, 1 * MIB, 128 * MIB)),
        ("gfx942", 8, (256 * KIB, 8 * MIB, 0)),
    ],
)
def test_messages_change_algorithm_at_documented_sizes(capability: str, ranks: int, last_of_each: tuple[float, ...]) -> None:
    size = 2.0 ** np.arange(8, 34)
    at = algorithm(size, np.full(size.shape, float(ranks)), capability)
    assert (np.diff(at) >= 0).all()
    assert at[-1] == ALGORITHMS.index("library")
    for number, end in enumerate(last_of_each):
        mine = size[at == number]
        assert (len(mine) == 0) if end == 0 else mine[-1] * 2 == end


def test_wide_groups_take_the_library() -> None:
    assert algorithm(np.array(1024.0), np.array(16.0), "9.0") == 3


def test_price_by_hand() -> None:
    """On 8 ranks one shot carries 7 messages, two shots 2·7/8, the switch 1, the library half way from 1 to a ring's 2·7/8."""
    size, ranks = np.array([128 * KIB, 4 * MIB]), np.full(2, 8.0)
    ampere = custom_all_reduce_trend_s(size, ranks, 1e11, "8.0", C)
    assert ampere[0] == pytest.approx(np.hypot(4e-6, 7 * size[0] / 5e10))
    assert ampere[1] == pytest.approx(np.hypot(5e-6, 1.75 * size[1] / 5e10))
    hopper = custom_all_reduce_trend_s(np.array([4 * MIB, 1024 * MIB]), ranks, 1e11, "9.0", C)
    assert hopper[0] == pytest.approx(np.hypot(6e-6, 4 * MIB / 5e10))
    assert hopper[1] == pytest.approx(7e-6 + 1.375 * 1024 * MIB / 5e10)
    coordinates = custom_all_reduce_coordinates(size, ranks, "8.0")
    assert [list(x) for x in coordinates] == [list(size), [8, 8], [1, 2]]


def test_algorithms_no_row_took_borrow_from_the_one_before() -> None:
    size, ranks = np.array([128 * KIB, 4 * MIB]), np.full(2, 8.0)
    start = start_coefficients(algorithm(size, ranks, "8.0"))
    assert start == {"one_shot_s": 8e-6, "two_shot_s": 8e-6, "one_shot_frac": 0.6, "two_shot_frac": 0.6, "hop_s": 3e-7}
    assert "ring_frac" in start_coefficients(np.array([3]))
    few = {name: value for name, value in C.items() if not name.startswith(("switch", "library", "ring"))}
    large = custom_all_reduce_trend_s(np.full(2, 1024 * MIB), np.full(2, 8.0), 1e11, "9.0", few)
    assert large == pytest.approx(5e-6 + 1.75 * 1024 * MIB / 5e10)


def test_jumps_of_the_measured_cards() -> None:
    """vLLM in a CUDA graph: 4 to 8 MiB goes from 25 to more than 100 us on 2 A100; 128 to 256 KiB from 7.9 to 10.8 us on 8 H100."""

    def price(gpu: str, size: float, ranks: int) -> float:
        card = registry.accelerator(gpu)
        cluster = registry.cluster(gpu, 8)
        network = Network(cluster, card, registry.link(cluster.intra), registry.link(cluster.inter), load_calibration(card))
        return float(network.custom_all_reduce_s(size, ranks))

    assert price("a100-80gb-sxm", 4 * MIB, 2) == pytest.approx(25.2e-6, rel=0.1)
    assert price("a100-80gb-sxm", 16 * MIB, 2) == pytest.approx(126e-6, rel=0.1)
    assert price("a100-80gb-sxm", 8 * MIB, 2) > 2.5 * price("a100-80gb-sxm", 4 * MIB, 2)
    assert price("h100-sxm", 256 * KIB, 8) == pytest.approx(10.8e-6, rel=0.1)
    assert price("b200", 1 * MIB, 8) < price("b200", 512 * KIB, 8)
