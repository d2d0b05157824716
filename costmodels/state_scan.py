"""Sequence parallelism of linear attention: a state handed from rank to rank (ZeCO's All-Scan) or gathered by all (LASP-2)."""

from __future__ import annotations

import numpy as np

from .collectives import Network
from .op import Floats

BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Blocks a state may be cut into."""


def all_scan_s(network: Network, state_bytes: Floats, n_ranks: int, blocks: int) -> Floats:
    """Seconds until the last of P ranks holds the scanned state: ``tau(S) + sum over P-1 hops of tau(S/K)``.

    ``tau`` is one message to the next rank, over the node's links or, for every gpus_per_node-th hop, over a NIC; the state moves in
    K = ``blocks`` pieces, so a hop waits for one piece only. Source: ZeCO (2025), §3.
    """
    per_node = network.cluster.gpus_per_node
    nodes = -(-n_ranks // per_node)
    piece = np.asarray(state_bytes, float) / blocks
    far, near = nodes - 1, n_ranks - nodes
    first = network.p2p_s(state_bytes, per_node if nodes > 1 else 1)
    return first + near * network.p2p_s(piece, 1) + far * network.p2p_s(piece, per_node)


def best_all_scan_s(network: Network, state_bytes: float, n_ranks: int) -> float:
    """The same at the best number of blocks."""
    return min(float(np.asarray(all_scan_s(network, state_bytes, n_ranks, k))) for k in BLOCKS)


def gather_states_s(network: Network, state_bytes: Floats, n_ranks: int) -> Floats:
    """Seconds of LASP-2's one all-gather of every rank's state. Source: LASP-2 (2025), §3.1."""
    return network.all_gather_s(np.asarray(state_bytes, float) * n_ranks, n_ranks, 1)
