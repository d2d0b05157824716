"""The price of a serving engine's own all-reduce inside a node: four algorithms, chosen by message size, ranks and architecture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, soft_max
from .collective_curve import collective_coordinates

KIB, MIB = 1024.0, 1048576.0

Chosen = NDArray[np.intp]
"""Indices into ALGORITHMS."""

ALGORITHMS = ("one_shot", "two_shot", "switch", "library")
"""Every rank reads all others' messages; reduce-scatter and all-gather over peers; symmetric memory added by the switch; NCCL."""

GROUPS = (2, 4, 8)
"""Group sizes the limits below are stated for; a group between two takes those of the larger."""

ONE_SHOT_BYTES = (np.inf, 512 * KIB, 256 * KIB)
"""Messages below this go in one shot. Source: vLLM, ``csrc/custom_all_reduce.cuh`` (two ranks always do)."""

PEER_BYTES, SWITCH_BYTES = (8 * MIB, 8 * MIB, 8 * MIB), (0.0, 0.0, 0.0)
PEER_BYTES_OF = {
    "9.0": (8 * MIB, 8 * MIB, 256 * KIB),
    "10.0": (2 * MIB, 2 * MIB, 1 * MIB),
    "10.3": (4 * MIB, 4 * MIB, 4 * MIB),
}
SWITCH_BYTES_OF = {
    "9.0": (64 * MIB, 32 * MIB, 64 * MIB),
    "10.0": (8 * MIB, 32 * MIB, 128 * MIB),
    "10.3": (4 * MIB, 32 * MIB, 64 * MIB),
}
"""Messages below these go from peer to peer, then through symmetric memory, the rest to the library; by compute capability, the first pair
elsewhere. Source: vLLM, ``distributed/device_communicators/all_reduce_utils.py`` and ``custom_all_reduce.py`` (8 MiB at most)."""


def algorithm(n_bytes: Array, n_ranks: Array, capability: str) -> Chosen:
    """Index into ALGORITHMS of each message; groups wider than the widest of GROUPS take the library."""
    group = np.minimum(np.searchsorted(GROUPS, n_ranks), len(GROUPS) - 1)
    peer = np.asarray(PEER_BYTES_OF.get(capability, PEER_BYTES))[group]
    switch = np.asarray(SWITCH_BYTES_OF.get(capability, SWITCH_BYTES))[group]
    near = np.where(n_bytes < np.minimum(np.asarray(ONE_SHOT_BYTES)[group], peer), 0, np.where(n_bytes < peer, 1, 2))
    chosen: Chosen = np.where((n_ranks > GROUPS[-1]) | ((near == 2) & (n_bytes >= switch)), 3, near)
    return chosen


def start_coefficients(algorithms: Chosen) -> dict[str, float]:
    """Starting coefficients of a fit whose rows take these algorithms."""
    used = [name for i, name in enumerate(ALGORITHMS) if i in algorithms]
    each = {f"{name}_s": 8e-6 for name in used} | {f"{name}_frac": 0.6 for name in used}
    return each | {"hop_s": 3e-7} | ({"ring_frac": 0.5} if "library" in used else {})


def custom_all_reduce_trend_s(
    n_bytes: Array, n_ranks: Array, link_bytes_per_s: float | Array, capability: str, c: Mapping[str, float]
) -> Array:
    """Seconds: ``softmax(launch + hop_s·log2(n), bytes on the wire / (link · achieved fraction))``, launch and fraction by algorithm.

    The library fills its pipeline before it streams: there the two add. On the wire, per byte of message: ``n − 1`` in one shot,
    ``2(n−1)/n`` in two, 1 where the switch adds; for the library between 1 and ``2(n−1)/n`` (a ring), at ``ring_frac`` of the way.
    An algorithm without coefficients, which no fitted row took, is priced with those of the one before it.
    """
    at = algorithm(n_bytes, n_ranks, capability)
    ring = (n_ranks - 2) / n_ranks
    factor = np.choose(at, [n_ranks - 1, 1 + ring, np.ones_like(ring), 1 + c.get("ring_frac", 1.0) * ring])
    fitted = [i for i, name in enumerate(ALGORITHMS) if f"{name}_s" in c]
    names = [ALGORITHMS[max((j for j in fitted if j <= i), default=fitted[0])] for i in range(len(ALGORITHMS))]
    launch = np.array([c[f"{name}_s"] for name in names])[at] + c["hop_s"] * np.log2(n_ranks)
    frac = np.array([c[f"{name}_frac"] for name in names])[at]
    wire = n_bytes * factor / (link_bytes_per_s * frac)
    return np.where(at == 3, launch + wire, soft_max(launch, wire, c["sharpness"]))


def custom_all_reduce_coordinates(n_bytes: Array, n_ranks: Array, capability: str) -> tuple[Array, Array, Array]:
    """Coordinates of the correction table: message bytes, ranks, algorithm (powers of 2), so that a jump stays a jump."""
    return *collective_coordinates(n_bytes, n_ranks), np.exp2(algorithm(n_bytes, n_ranks, capability))
