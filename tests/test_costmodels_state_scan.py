"""The scan against a hop-by-hop replay, its limits, and against the gather."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels import state_scan
from roofplan.costmodels.collectives import Network
from roofplan.costmodels.system import make_system
from roofplan.scenarios import registry


def network(n_gpus: int) -> Network:
    return make_system(registry.cluster("h100-sxm", n_gpus), "megatron-core").network


def replay(net: Network, state: float, ranks: int, blocks: int) -> float:
    """Pieces handed on one by one: each rank sends a piece when it has it and its link is free; scaled hops as the closed form's."""
    arrived = np.zeros(blocks)
    for rank in range(ranks - 1):
        stride = net.cluster.gpus_per_node if (rank + 1) % net.cluster.gpus_per_node == 0 else 1
        hop = float(np.asarray(net.p2p_s(state / blocks, stride)))
        done = 0.0
        for k in range(blocks):
            done = max(done, float(arrived[k])) + hop
            arrived[k] = done
    return float(arrived[-1])


@pytest.mark.parametrize("ranks", [2, 8, 16, 64])
@pytest.mark.parametrize("blocks", [1, 4])
def test_at_least_the_replay_and_close_to_it(ranks: int, blocks: int) -> None:
    net, state = network(max(ranks, 8)), 8.0 * 2**20
    closed = float(np.asarray(state_scan.all_scan_s(net, state, ranks, blocks)))
    replayed = replay(net, state, ranks, blocks)
    slowest = float(np.asarray(net.p2p_s(state, 8 if ranks > 8 else 1)))
    pieces = blocks * float(np.asarray(net.p2p_s(state / blocks, 8 if ranks > 8 else 1)))
    assert replayed <= closed + pieces
    assert closed <= replayed + slowest + 1e-12


def test_one_block_is_a_chain() -> None:
    """8 ranks in one node: the first message, then seven hops of the whole state."""
    net = network(8)
    hop = float(np.asarray(net.p2p_s(1e6, 1)))
    assert float(np.asarray(state_scan.all_scan_s(net, 1e6, 8, 1))) == pytest.approx(8 * hop)


def test_more_blocks_help_large_states_and_the_best_is_the_least() -> None:
    net = network(64)
    times = [float(np.asarray(state_scan.all_scan_s(net, 64e6, 64, k))) for k in state_scan.BLOCKS]
    assert times[3] < times[0] / 3
    assert state_scan.best_all_scan_s(net, 64e6, 64) == min(times)


def test_a_scan_grows_slower_than_a_gather() -> None:
    scan = [state_scan.best_all_scan_s(network(p), 2e6, p) for p in (64, 256)]
    gather = [float(np.asarray(state_scan.gather_states_s(network(p), 2e6, p))) for p in (64, 256)]
    assert scan[1] / gather[1] < 0.6
    assert gather[1] / gather[0] == pytest.approx(4, rel=0.1)
