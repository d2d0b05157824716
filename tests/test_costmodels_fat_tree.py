"""Sizes of fat trees against a tree built link by link."""

from __future__ import annotations

import pytest
from roofplan.costmodels.fat_tree import endpoints, switches


def built(ports: int, tiers: int) -> tuple[int, int]:
    """(end points, switches) of a full-bisection tree, counting ports: half of every switch below the top faces down."""
    half = ports // 2
    if tiers == 2:
        leaves = ports  # each of the ports/2 spines has one port for every leaf
        return leaves * half, leaves + half
    pods, per_pod = ports, half
    return pods * per_pod * half, pods * 2 * per_pod + half * half


@pytest.mark.parametrize("ports", [4, 8, 64])
@pytest.mark.parametrize("tiers", [2, 3])
def test_against_a_built_tree(ports: int, tiers: int) -> None:
    assert (endpoints(ports, tiers), switches(ports, tiers)) == built(ports, tiers)


def test_planes_multiply() -> None:
    assert endpoints(64, 2, 8) == 8 * endpoints(64, 2) == 16384
    assert switches(64, 2, 8) == 768
