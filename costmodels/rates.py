"""What one GPU sustains, in five numbers: datasheet times the fractions its calibration measured, or times fractions a caller gives."""

from __future__ import annotations

from ..scenarios import registry
from ..scenarios.calibration import Calibration, load_calibration
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from .collectives import group_bytes_per_s
from .step import Rates

KERNELS = {"fa2": "attention.fa2", "best": "attention.prefill.hd128", "decode": "attention.decode.hd128"}
"""Attention kernel -> the calibration family that has its plateau."""


def rates(
    cluster: Cluster,
    *,
    calibration: Calibration | None = None,
    linear_frac: float = 0.0,
    attention_frac: float = 0.0,
    memory_frac: float = 0.0,
    link_frac: float = 0.0,
    network_frac: float = 1.0,
    dtype: str = "bf16",
    kernel: str = "fa2",
) -> Rates:
    """Sustained rates of one GPU of a cluster. A fraction of 0 takes the calibration's: plateau of GEMMs, of attention's FLOPs
    (``kernel``: plain ``fa2``, the ``best`` prefill kernel measured, ``decode``), of decode attention's reads, of host copies.
    Between GPUs: the link inside a node, its NICs' share across nodes. BadInput over 1.
    """
    gpu = registry.accelerator(cluster.gpu)
    fits = calibration or load_calibration(gpu)
    given = {"linear_frac": linear_frac, "attention_frac": attention_frac, "memory_frac": memory_frac, "link_frac": link_frac}
    for name, value in {**given, "network_frac": network_frac}.items():
        if not 0 <= value <= 1:
            raise BadInput(f"{name}={value} of {gpu.name} must be between 0 and 1: nothing runs faster than its datasheet")
    peak = gpu.peak_flops_per_s(dtype)
    link = registry.link(cluster.intra if cluster.n_nodes == 1 else cluster.inter)
    share = 1.0 if cluster.n_nodes == 1 else min(cluster.nics_per_node / cluster.gpus_per_node, 1.0)
    return Rates(
        linear_flops_per_s=peak * (linear_frac or fits.fit("gemm.bf16").coefficients["compute_frac"]),
        attention_flops_per_s=gpu.peak_flops_per_s("bf16") * (attention_frac or fits.fit(KERNELS[kernel]).coefficients["compute_frac"]),
        hbm_bytes_per_s=gpu.hbm_bytes_per_s * (memory_frac or fits.fit("attention.decode.hd128").coefficients["memory_frac"]),
        host_bytes_per_s=registry.link(cluster.host_link).bytes_per_s * (link_frac or fits.fit("host_copy").coefficients["link_frac"]),
        network_bytes_per_s=float(group_bytes_per_s(link, cluster.n_gpus)) * share * network_frac,
        hop_s=link.latency_s,
        hbm_bytes=gpu.hbm_bytes,
        host_ram_bytes=cluster.host_ram_bytes / cluster.gpus_on_host,
    )
