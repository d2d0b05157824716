"""Where replicas sit decides which links join them."""

from __future__ import annotations

import pytest
from roofplan.costmodels.serving_ops import serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.serving import serving_engine
from roofplan.sim.placement import Placement


def placed(gpus: list[int], *, n_gpus: int = 16, nic_per_gpu: bool = True, ranks: list[int] | None = None, name: str = "h100-sxm"):
    system = serve_system(registry.cluster(name, n_gpus), serving_engine("vllm"))
    return Placement(system.network, gpus, ranks or gpus, nic_per_gpu), system.network


def test_same_node_uses_nvlink_and_another_node_the_adapters():
    place, net = placed([2, 4, 8])
    path, ceiling, latency = place.route(0, 1)
    assert [place.links.names[link] for link, _ in path] == ["nvlink 0 >", "nvlink 1 <"]
    assert [place.links.bytes_per_s[link] for link, _ in path] == [2 * net.intra.bytes_per_s, 4 * net.intra.bytes_per_s]
    assert (ceiling, latency) == (2 * net.intra.bytes_per_s, net.intra.latency_s)
    path, ceiling, latency = place.route(0, 2)  # replica 2 lies on GPUs 6 to 13, in both nodes
    assert [place.links.names[link] for link, _ in path] == ["nic 0 >", "nic 2 <"]
    assert [place.links.bytes_per_s[link] for link, _ in path] == [2 * net.inter.bytes_per_s, 8 * net.inter.bytes_per_s]
    assert (ceiling, latency) == (2 * net.inter.bytes_per_s, net.inter.latency_s)


def test_one_adapter_a_node_is_shared_by_all_replicas_on_it():
    place, net = placed([2, 2, 4, 8], nic_per_gpu=False)
    ways = [place.route(sender, 3)[0] for sender in (0, 1, 2)]
    assert {place.links.names[way[0][0]] for way in ways} == {"node 0 >"}
    assert place.links.bytes_per_s[ways[0][0][0]] == net.inter.bytes_per_s
    for sender in (0, 1, 2):
        place.links.start(sender, 1e9, ways[sender], 0.0)
    assert place.links.rate(0) == pytest.approx(net.inter.bytes_per_s / 3)


def test_a_replica_over_two_nodes_sends_half_through_each_adapter():
    place, net = placed([16, 8, 8], n_gpus=32, nic_per_gpu=False)
    path, _, _ = place.route(0, 1)
    assert [(place.links.names[link], share) for link, share in path] == [("node 0 >", 0.5), ("node 1 >", 0.5), ("node 2 <", 1.0)]
    place.links.start(0, 1e9, path, 0.0)
    assert place.links.rate(0) == pytest.approx(net.inter.bytes_per_s)  # the receiver's one adapter


def test_a_transfer_uses_the_ranks_that_hold_its_kv():
    place, net = placed([8, 8], ranks=[1, 8])
    assert place.route(0, 1)[1] == net.inter.bytes_per_s


def test_adapters_shared_by_several_gpus_give_each_its_part():
    place, net = placed([1, 8], name="a100-80gb-pcie")
    (link, _), _ = place.route(0, 1)[0]
    assert place.links.bytes_per_s[link] == pytest.approx(net.inter.bytes_per_s * 2 / 8)
