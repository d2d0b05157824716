"""Size of the folded-Clos networks that join GPUs: end points and switches of k-port fat trees, in several planes."""

from __future__ import annotations


def endpoints(ports: int, tiers: int, planes: int = 1) -> int:
    """End points of a full-bisection fat tree of k-port switches: ``k²/2`` (two tiers) or ``k³/4`` (three), times the planes."""
    return planes * {2: ports**2 // 2, 3: ports**3 // 4}[tiers]


def switches(ports: int, tiers: int, planes: int = 1) -> int:
    """Switches of the same tree: ``3k/2`` (two tiers) or ``5k²/4`` (three), times the planes. Source: Al-Fares et al. 2008, §3."""
    return planes * {2: 3 * ports // 2, 3: 5 * ports**2 // 4}[tiers]
