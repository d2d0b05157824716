"""Which links join two replicas: NVLink where they share a node, else the network adapters of the nodes they sit on."""

from __future__ import annotations

from collections.abc import Sequence

from ..costmodels.collectives import Network
from .links import FairLinks, Path


class Placement:
    """Replicas on consecutive GPUs from the first on, ``gpus`` each, and the links out of (``>``) and into (``<``) each.

    A pair in one node talks over its GPUs' own links: ``n_gpus · intra`` a side. Across nodes each GPU has ``nics_per_node/gpus_per_node``
    of an adapter of its own, a replica those of its GPUs together; with ``nic_per_gpu`` false one adapter serves a node, for all replicas
    on it, and a replica on several nodes sends an equal part through each. ``ranks`` are the replica's GPUs that hold one request's KV:
    one transfer cannot use the links of more, and in a mesh a pair of GPUs has one link.
    """

    def __init__(self, network: Network, gpus: Sequence[int], ranks: Sequence[int], nic_per_gpu: bool) -> None:
        cluster = network.cluster
        self._gpus, self._ranks = gpus, ranks
        self._intra, self._inter = network.intra.bytes_per_s, network.inter.bytes_per_s
        self._pair = float(network.near_bytes_per_s(2))
        self._latency = (network.intra.latency_s, network.inter.latency_s)
        self._share = network.inter.bytes_per_s * cluster.nics_per_node / cluster.gpus_per_node if nic_per_gpu else self._inter
        self._own = nic_per_gpu
        first, self._nodes = 0, []
        for n in gpus:
            self._nodes.append(range(first // cluster.gpus_per_node, (first + n - 1) // cluster.gpus_per_node + 1))
            first += n
        names: list[str] = []
        rates: list[float] = []
        for i, n in enumerate(gpus):
            names += [f"nvlink {i} >", f"nvlink {i} <"]
            rates += [self._intra * n] * 2
        self._nics = len(names)
        for i in range(len(gpus) if nic_per_gpu else self._nodes[-1][-1] + 1):
            names += [f"nic {i} >", f"nic {i} <"] if nic_per_gpu else [f"node {i} >", f"node {i} <"]
            rates += [self._share * gpus[i] if nic_per_gpu else self._inter] * 2
        self.links = FairLinks(names, rates)
        self._routes: dict[tuple[int, int], tuple[Path, float, float]] = {}

    def route(self, sender: int, receiver: int) -> tuple[Path, float, float]:
        """(links with the share of the bytes over each, ceiling in bytes/s, latency in s) from one replica to another."""
        found = self._routes.get((sender, receiver))
        if found is None:
            found = self._routes[sender, receiver] = self._find(sender, receiver)
        return found

    def _find(self, sender: int, receiver: int) -> tuple[Path, float, float]:
        ranks = min(self._ranks[sender], self._ranks[receiver])
        if len(self._nodes[sender]) == len(self._nodes[receiver]) == 1 and self._nodes[sender] == self._nodes[receiver]:
            return ((2 * sender, 1.0), (2 * receiver + 1, 1.0)), self._pair * ranks, self._latency[0]
        return (*self._way(sender, 0), *self._way(receiver, 1)), self._share * ranks, self._latency[1]

    def _way(self, replica: int, direction: int) -> Path:
        if self._own:
            return ((self._nics + 2 * replica + direction, 1.0),)
        nodes = self._nodes[replica]
        return tuple((self._nics + 2 * node + direction, 1 / len(nodes)) for node in nodes)
