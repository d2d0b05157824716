"""Accelerators, links and clusters: datasheet figures with their sources, nothing measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One GPU or NPU as sold: dense peaks (never the sparse figure), memory, limits.

    ``sources`` maps a key of the data file (or ``default``) to the datasheet it was read from. ``kin`` names the card whose
    measured efficiencies a card without measurements borrows. Peaks of 0 mean the format is not supported. ``inline_ecc_frac`` is the
    share of memory traffic that carries check bits (1/16 on GDDR6 with ECC on, as of its capacity; HBM has lanes of its own for them).
    ``reached_bf16_flops_per_s`` is what large products reach as their vendor publishes it, for a card nobody measured (0: not published).
    """

    name: str
    vendor: str
    arch: str
    hbm_bytes: float
    hbm_bytes_per_s: float
    bf16_flops_per_s: float
    fp16_flops_per_s: float
    tf32_flops_per_s: float = 0.0
    fp32_flops_per_s: float = 0.0
    fp8_flops_per_s: float = 0.0
    int8_flops_per_s: float = 0.0
    fp4_flops_per_s: float = 0.0
    int4_flops_per_s: float = 0.0
    n_sms: int
    l2_bytes: float
    smem_bytes: float
    clock_hz: float
    tdp_w: float
    usable_hbm_frac: float = 1.0
    inline_ecc_frac: float = 0.0
    reached_bf16_flops_per_s: float = 0.0
    kin: str = ""
    compute_capability: str = ""
    aliases: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    def peak_flops_per_s(self, dtype: str) -> float:
        """Dense peak for ``bf16 fp16 fp32 tf32 fp8 int8 fp4 int4`` (aliases fp8_block, mxfp8, nvfp4); BadInput if absent."""
        short = {"fp8_block": "fp8", "mxfp8": "fp8", "nvfp4": "fp4", "mxfp4": "fp4", "bfloat16": "bf16", "float16": "fp16"}
        name = f"{short.get(dtype, dtype)}_flops_per_s"
        peak: float = getattr(self, name, 0.0)
        if peak <= 0:
            legal = [f.removesuffix("_flops_per_s") for f in self.__slots__ if f.endswith("_flops_per_s") and getattr(self, f) > 0]
            raise BadInput(f"{self.name} has no {dtype} arithmetic; legal: {', '.join(legal)}")
        return peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection as one GPU sees it: bandwidth per direction, one-way latency of a small message.

    ``mesh_links`` is the number of equal links that make up the bandwidth, one to each peer; 0: a switch gives all of it to any peer.
    """

    name: str
    kind: str
    bytes_per_s: float
    latency_s: float
    mesh_links: int = 0
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``n_gpus`` of one kind in equal nodes: links, host memory, storage and prices.

    ``intra`` joins the GPUs of one node (one NVLink domain: 72 GPUs of an NVL72), ``inter`` is one NIC;
    ``nics_per_node`` NICs serve the node's GPUs together. ``host_ram_bytes``, ``host_bytes_per_s`` (DRAM, all sockets),
    ``host_cores`` and ``nvme_*`` are per host: one machine of ``gpus_per_host`` GPUs (0: the host is the node; 4 in an NVL72).
    ``host_link`` is one GPU's way to host memory. Prices are for one GPU; 0 means no public price is known.
    """

    name: str
    gpu: str
    gpus_per_node: int
    intra: str
    inter: str
    nics_per_node: int
    host_link: str
    host_ram_bytes: float
    host_bytes_per_s: float
    host_cores: int
    nvme_bytes: float = 0.0
    nvme_bytes_per_s: float = 0.0
    on_demand_usd_per_h: float = 0.0
    spot_usd_per_h: float = 0.0
    n_gpus: int = 1
    gpus_per_host: int = 0
    aliases: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def n_nodes(self) -> int:
        return -(-self.n_gpus // self.gpus_per_node)

    @property
    def gpus_on_host(self) -> int:
        """How many of the run's GPUs share one host's memory, cores and drives."""
        return min(self.gpus_per_host or self.gpus_per_node, self.gpus_per_node, self.n_gpus)

    @property
    def n_hosts(self) -> int:
        return -(-self.n_gpus // self.gpus_on_host)

    def with_gpus(self, n_gpus: int, gpus_per_node: int | None = None) -> Cluster:
        """The same kind of cluster with this many GPUs; BadInput unless they fill whole nodes or fit inside one.

        A smaller node keeps its share of the NICs. GPUs that fill whole hosts of an NVLink domain but not whole domains use
        the largest equal part of each domain: 256 GPUs of an NVL72 are 4 domains of 64. For such a cluster
        ``gpus_per_node`` equal to ``gpus_per_host`` names the host and leaves the domain as it is.
        """
        asked = None if gpus_per_node == self.gpus_per_host and self.gpus_per_host else gpus_per_node
        per_node = self.gpus_per_node if asked is None else asked
        if n_gpus < 1 or per_node < 1:
            raise BadInput(f"n_gpus={n_gpus}, gpus_per_node={per_node}: both must be at least 1")
        if n_gpus > 1_000_000:
            raise BadInput(f"n_gpus={n_gpus:,} is over the limit of 1,000,000")
        host = min(self.gpus_per_host or per_node, per_node)
        if n_gpus > per_node and n_gpus % per_node and n_gpus % host == 0:
            per_node = max(part for part in range(host, per_node + 1, host) if n_gpus % part == 0)
        if n_gpus > per_node and n_gpus % per_node:
            low, high = n_gpus // host * host, -(-n_gpus // host) * host
            raise BadInput(f"n_gpus={n_gpus} is not a whole number of nodes of {host}; nearest: {low}, {high}")
        per_node = per_node if asked else min(per_node, n_gpus)
        nics = max(1, round(self.nics_per_node * per_node / self.gpus_per_node))
        return replace(self, n_gpus=n_gpus, gpus_per_node=per_node, nics_per_node=nics)
