"""Seconds of collectives on a cluster: bytes on the wire over achieved link bandwidth, two-level when a group spans nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..scenarios.calibration import Calibration
from ..scenarios.hardware import Accelerator, Cluster, Link
from .arrays import Array, Reals, as_floats
from .collective_curve import (
    Dispatch,
    collective_coordinates,
    collective_trend_s,
    dispatch_coordinates,
    dispatch_element_bytes,
    dispatch_trend_s,
    rising,
    wire_bytes,
)
from .custom_all_reduce import algorithm, custom_all_reduce_coordinates, custom_all_reduce_trend_s
from .grid_curve import GridCurve

WIRE = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
"""Bytes each rank sends per byte of message between nodes, times ``(n−1)/n``: the bus-bandwidth convention of nccl-tests."""


HOP_LATENCIES = 4.3
"""One step of a collective between nodes (proxy, write, flag, acknowledgement) in one-way link latencies. Source: two nodes of A100 on
InfiniBand take 28 to 40 us longer than one for a small all-reduce (Vidur's network tables: 2 tree hops of 3.3 us links), and each of the
15 and 31 ring steps of tensor parallelism over 2 and 4 EFA nodes takes 45 to 55 us (fitted rows of the nanotron grid; 10.9 us links)."""


SIZES = tuple(float(2 ** (octave / 4)) for octave in range(4 * 8, 4 * 34 + 1))
RANKS = (2.0, 4.0, 8.0, 16.0, 32.0, 72.0, 144.0, 576.0)
"""Nodes of a collective's curve inside one node or NVLink domain: bytes (quarter octaves from 256 B to 16 GiB) and ranks."""


def group_bytes_per_s(link: Link, n_ranks: Reals) -> Array:
    """Bytes/s from one GPU to the others of a group of ``n_ranks``: in a mesh only its links to them serve."""
    links = max(link.mesh_links, 1)
    out: Array = link.bytes_per_s * np.clip(as_floats(n_ranks)[0] - 1, 1, links) / links
    return out


@dataclass(frozen=True, slots=True)
class Network:
    """Prices collectives over a cluster's links. ``n_bytes`` is the message as nccl-tests counts it (gathered or per-rank buffer).

    A group of ``n_ranks`` whose members sit ``stride`` apart in global rank order has ``r = gpus_per_node/stride`` members in a node;
    NICs are shared by the node's GPUs, so a GPU's way out is ``nics_per_node·link/gpus_per_node`` and a group that holds ``r``
    GPUs of a node owns ``r`` such shares. All arguments broadcast; groups of one rank cost nothing.
    """

    cluster: Cluster
    gpu: Accelerator
    intra: Link
    inter: Link
    calibration: Calibration
    _curves: dict[str, GridCurve] = field(default_factory=dict, repr=False, compare=False)

    def all_reduce_s(self, n_bytes: Reals, n_ranks: Reals, stride: Reals = 1, dtype: str = "bf16") -> Array:
        """At least ``bytes`` per rank inside a node (the switch may add); across nodes: reduce-scatter, all-reduce across, all-gather.

        ``dtype="int8"`` prices integer sums, which switches do not add.
        """
        return self._collective_s("all_reduce.int8" if dtype == "int8" else "all_reduce", n_bytes, n_ranks, stride)

    def custom_all_reduce_s(self, n_bytes: Reals, n_ranks: Reals, mode: str = "graph") -> Array:
        """A serving engine's own all-reduce of tensor parallelism inside a node, in a CUDA ``graph`` or launched ``eager``-ly."""
        size, n = np.broadcast_arrays(*as_floats(n_bytes, n_ranks))
        price = self._level_s("all_reduce", size, n, f"custom_allreduce.{mode}")
        return np.where((n > 1) & (size > 0), price, 0.0)

    def dispatch_s(
        self,
        tokens: Reals,
        hidden: Reals,
        topk: Reals,
        ep: Reals,
        backend: str = "deepep_ht",
        phase: str = "dispatch",
        experts: Reals = 256,
    ) -> Array:
        """Seconds of one ``dispatch`` or ``combine`` of expert parallelism inside a node: ``tokens`` per rank to ``topk`` experts each."""
        t, h, k, ep_, e = np.broadcast_arrays(*as_floats(tokens, hidden, topk, ep, experts))
        work = Dispatch(tokens=t, hidden=h, topk=k, ep=ep_, experts=e, element_bytes=dispatch_element_bytes(phase))
        key = f"moe_alltoall.{backend}.{phase}"
        fit = self.calibration.fit(key)
        near = self.near_bytes_per_s(ep_)
        price = dispatch_trend_s(work, near, fit.coefficients)
        if fit.axes:
            price = price * np.exp(GridCurve.of(fit.axes, self.calibration.correction(fit)).log_factor(*dispatch_coordinates(work)))
        return np.where((t > 0) & (ep_ > 1), np.maximum(price, work.remote_bytes / near), 0.0)

    def all_gather_s(self, n_bytes: Reals, n_ranks: Reals, stride: Reals = 1) -> Array:
        """``(n−1)/n·bytes`` received per rank, ``n_bytes`` being the gathered result."""
        return self._collective_s("all_gather", n_bytes, n_ranks, stride)

    def reduce_scatter_s(self, n_bytes: Reals, n_ranks: Reals, stride: Reals = 1) -> Array:
        """``(n−1)/n·bytes`` sent per rank, ``n_bytes`` being the full input."""
        return self._collective_s("reduce_scatter", n_bytes, n_ranks, stride)

    def all_to_all_s(self, n_bytes: Reals, n_ranks: Reals, stride: Reals = 1, fan_out: int = 1, node_limit: int = 0) -> Array:
        """``(n−1)/n·bytes`` per rank; across nodes ``(n−r)/n`` of it leaves through the rank's share of the NICs.

        Of a row sent to ``fan_out`` ranks only one copy crosses to each node (two-level dispatch): ``d/fan_out`` of the bytes, where
        ``d = N(1−(1−1/N)^fan_out)`` of ``N`` nodes are hit when the targets are random, at most ``node_limit`` (0: no limit).
        Source: DeepSeek-V3 report, section 3.2.2 (each token goes to at most 4 nodes, then over NVLink).
        """
        size, n, step = np.broadcast_arrays(*as_floats(n_bytes, n_ranks, stride))
        r, nodes = self._shape(n, step)
        hit = nodes * (1 - (1 - 1 / nodes) ** fan_out)
        copies = (np.minimum(hit, node_limit) if node_limit else hit) / fan_out
        out = size * (n - r) / n * copies
        cross = self._cross_s("all_to_all", out, nodes - 1, self._nic_share())
        if fan_out > 1:  # rows arrive over the rails and fan out over the node's links at the same time
            price = np.maximum(self._level_s("all_to_all", size, r), cross)
        else:
            price = self._level_s("all_to_all", size * r / n, r) + cross
        price = np.maximum(np.where(nodes > 1, price, self._level_s("all_to_all", size, n)), out / self._nic_share())
        return np.where((n > 1) & (size > 0), price, 0.0)

    def p2p_s(self, n_bytes: Reals, stride: Reals = 1, senders: Reals = 0) -> Array:
        """One message to the rank ``stride`` away: over the node's links if it is nearer than a node's width, else over the NICs.

        ``senders`` GPUs of a node send at once and share its NICs (0: all of them); one alone reaches at most its own rail:
        one NIC, or its share where a GPU has several.
        """
        size, step, flows = np.broadcast_arrays(*as_floats(n_bytes, stride, senders))
        inside = step < self.cluster.gpus_per_node
        near = self._level_s("p2p", size, np.full(size.shape, 2.0))
        flows = np.where(flows > 0, np.minimum(flows, self.cluster.gpus_per_node), self.cluster.gpus_per_node)
        rail = max(self.inter.bytes_per_s, self._nic_share())
        share = np.minimum(rail, self.cluster.nics_per_node * self.inter.bytes_per_s / flows)
        far = self._cross_s("p2p", size, 1.0, np.minimum(share, self.intra.bytes_per_s))
        return np.where(size > 0, np.where(inside, near, far), 0.0)

    def floor_s(self, op: str, n_bytes: Reals, n_ranks: Reals, stride: Reals = 1) -> Array:
        """Seconds no algorithm can beat: bytes each rank must send over its link, and each node's bytes over its NICs."""
        size, n, step = np.broadcast_arrays(*as_floats(n_bytes, n_ranks, stride))
        r, nodes = self._shape(n, step)
        op = op.removesuffix(".int8")
        wire = WIRE[op] * size
        near = wire_bytes(op, size * r / n if op == "all_to_all" else size, r) / self.near_bytes_per_s(r)
        out = wire * (n - r) / n if op == "all_to_all" else wire * (nodes - 1) / nodes / r
        return np.maximum(near, np.where(nodes > 1, out / self._nic_share(), 0.0)) * (n > 1)

    def _collective_s(self, op: str, n_bytes: Reals, n_ranks: Reals, stride: Reals) -> Array:
        size, n, step = np.broadcast_arrays(*as_floats(n_bytes, n_ranks, stride))
        r, nodes = self._shape(n, step)
        if not np.any(nodes > 1):
            price = self._level_s(op, size, n)
        else:
            # a ring's link between nodes passes n - 1 chunks one after another; an all-reduce may take a tree instead
            tree = 2 * np.log2(np.maximum(nodes, 2))
            plain = op.removesuffix(".int8")
            hops = np.minimum(2 * (n - 1), tree) if plain == "all_reduce" else n - 1
            across = self._cross_s(plain, WIRE[plain] * size / r * (nodes - 1) / nodes, hops, self._nic_share())
            price = np.where(nodes > 1, self._level_s(op, size, r) + across, self._level_s(op, size, n))
        price = np.maximum(price, self.floor_s(op, size, n, step))
        return np.where((n > 1) & (size > 0), price, 0.0)

    def _shape(self, n: Array, stride: Array) -> tuple[Array, Array]:
        """Members per node ``r`` and number of nodes of each group."""
        r = np.maximum(np.minimum(n, np.floor(self.cluster.gpus_per_node / np.maximum(stride, 1))), 1)
        return r, np.ceil(n / r)

    def near_bytes_per_s(self, n_ranks: Reals) -> Array:
        """Bytes/s from one GPU to the others of its group inside a node, see ``group_bytes_per_s``."""
        return group_bytes_per_s(self.intra, n_ranks)

    def _nic_share(self) -> float:
        return min(self.cluster.nics_per_node * self.inter.bytes_per_s / self.cluster.gpus_per_node, self.intra.bytes_per_s)

    def _level_s(self, op: str, size: Array, n: Array, family: str = "") -> Array:
        """Inside a node: the fitted curve, never falling as messages grow; held below SIZES, bytes over bandwidth above them."""
        key = family or f"collective.{op}"
        if key not in self._curves:
            self._curves[key] = self._level_curve(key, op.removesuffix(".int8"))
        seconds = np.exp(self._curves[key].log_factor(np.maximum(size, 1), np.maximum(n, 1)).astype(np.float64))
        price = seconds * np.maximum(size / SIZES[-1], 1)
        return np.where(n > 1, np.maximum(price, wire_bytes(op.removesuffix(".int8"), size, n) / self.near_bytes_per_s(n)), 0.0)

    def _level_curve(self, key: str, op: str) -> GridCurve:
        """``ln(seconds)`` of a family over SIZES and RANKS: trend times correction, made to rise with size (``rising``).

        A serving engine's own all-reduce rises within each of its algorithms; where it changes to a faster one, its price falls.
        """
        fit = self.calibration.fit(key)
        size, n = np.meshgrid(np.array(SIZES), np.array(RANKS), indexing="ij")
        pieces = np.zeros(size.shape, np.intp)
        if key.startswith("custom_allreduce."):
            card = self.gpu.compute_capability
            pieces = algorithm(size, n, card)
            seconds = custom_all_reduce_trend_s(size, n, self.near_bytes_per_s(n), card, fit.coefficients)
            coordinates: tuple[Array, ...] = custom_all_reduce_coordinates(size, n, card)
        else:
            seconds = collective_trend_s(op, size, n, self.near_bytes_per_s(n), fit.coefficients)
            coordinates = collective_coordinates(size, n)
        if fit.axes:
            seconds = seconds * np.exp(GridCurve.of(fit.axes, self.calibration.correction(fit)).log_factor(*coordinates))
        return GridCurve.of((SIZES, RANKS), rising(np.log(seconds), pieces))

    def _cross_s(self, op: str, sent: Array, hops: Reals, share: float | Array) -> Array:
        """Across nodes: ``hops · HOP_LATENCIES · link latency + bytes / (NIC share · achieved fraction)``."""
        c = self.calibration.fit(f"internode.{op}", "internode.all_reduce").coefficients
        out: Array = HOP_LATENCIES * self.inter.latency_s * as_floats(hops)[0] + sent / (share * c["link_frac"])
        return out
