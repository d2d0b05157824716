"""Efficiencies that no measurement table covers, each computed here from a published measurement and its source."""

from __future__ import annotations

from dataclasses import dataclass

from ..scenarios.calibration import FamilyFit
from ..scenarios.hardware import Accelerator


@dataclass(frozen=True, slots=True)
class FlashAttention2:
    """Published FlashAttention-2 speeds: forward causal TFLOP/s, and time of the backward pass over that of the forward."""

    forward_flops_per_s: float
    backward_over_forward: float
    peak_flops_per_s: float
    n_rows: int
    source: str


RING = "ring-flash-attention README, 8 GPUs, Llama-3.1-8B heads, 8K tokens a GPU, row 'theoretical'"

FA2 = {
    "ampere": FlashAttention2(
        (205e12 + 216e12) / 2,
        ((1 / 11.8 - 1 / 46.7) * 46.7 + 470.7 / 162.9) / 2,
        312e12,
        2,
        f"{RING}: A100 46.7 it/s forward, 11.8 with backward; Lightning Attention benchmark, A100, 32K tokens: 162.9, 470.7 ms; means",
    ),
    "hopper": FlashAttention2(325e12, (1 / 19.3 - 1 / 73.9) * 73.9, 989.4e12, 1, f"{RING}: H800 73.9 it/s forward, 19.3 forward+backward"),
    "blackwell": FlashAttention2(
        439e12,
        (15.4 - 3.75) / 3.75,
        2500e12,
        1,
        "flash-linear-attention benchmark, GB200, 8K tokens: 3.75 ms forward, 15.4 ms forward+backward",
    ),
}
"""Architecture -> FlashAttention-2. Backward executes 2.5 times the FLOPs of forward."""

H2D_BYTES_PER_S, PCIE5_BYTES_PER_S = 55.63e9, 63.0e9
CPU_ADAM_S, CPU_ADAM_PARAMS, DGX2_DRAM_BYTES_PER_S = 2.57, 10e9, 256e9
DEEPEP_BYTES_PER_S, IB_NDR_BYTES_PER_S = 43e9, 50e9
SEND_BYTES_PER_S = 35.4e9
FLEXSP_FRACS = (10.3 * 8 / 16 / 6.25, 5.9 * 24 / 32 / 6.25, 4.87 * 56 / 64 / 6.25)
"""All-to-all GB/s of 16, 32 and 64 A100 over two usable NICs (6.25 GB/s a GPU), times the part that leaves the node."""

READ_ERROR_FRAC, READ_P90_FRAC = 0.1, 0.25
"""Error granted to a figure read from one publication: no rows to learn it from."""


def families(gpu: Accelerator) -> dict[str, FamilyFit]:
    """The families no table measures: attention backward, plain FlashAttention-2, host copies and CPU Adam, links between nodes.

    A card of an unknown architecture takes Hopper's.
    """
    fa2 = FA2.get(gpu.arch, FA2["hopper"])
    return {
        "attention.backward": _fit({"time_ratio": fa2.backward_over_forward}, fa2.n_rows, fa2.source),
        "attention.fa2": _fit(
            {"compute_frac": fa2.forward_flops_per_s / fa2.peak_flops_per_s}, fa2.n_rows, f"forward TFLOP/s: {fa2.source}"
        ),
        "host_copy": _fit(
            {
                "launch_s": 1e-5,
                "link_frac": H2D_BYTES_PER_S / PCIE5_BYTES_PER_S,
                "dram_frac": 30 * CPU_ADAM_PARAMS / CPU_ADAM_S / DGX2_DRAM_BYTES_PER_S,
            },
            2,
            "nvbandwidth example: 55.63 GB/s host to device over PCIe 5.0 x16; ZeRO-Offload (Ren et al. 2021) table 4, quoted and not "
            "re-read: CPU Adam of 10e9 parameters in 2.57 s on a DGX-2 (12 channels of DDR4-2666)",
        ),
        "internode.all_reduce": _fit(
            {"link_frac": DEEPEP_BYTES_PER_S / IB_NDR_BYTES_PER_S},
            1,
            "DeepEP over InfiniBand, 43 of 50 GB/s on 16 GPUs (Insights into DeepSeek-V3, figure 7)",
        ),
        "internode.all_to_all": _fit(
            {"link_frac": sum(FLEXSP_FRACS) / 3}, 3, "FlexSP all-to-all table, 16 to 64 A100 over 400 Gb/s a node; mean"
        ),
        "internode.p2p": _fit(
            {"link_frac": SEND_BYTES_PER_S / IB_NDR_BYTES_PER_S},
            1,
            "Vidur network tables, h100_dgx send_recv across nodes, 64 MB at 35.4 of 50 GB/s",
        ),
    }


def _fit(coefficients: dict[str, float], n_rows: int, source: str) -> FamilyFit:
    return FamilyFit(
        coefficients={k: float(f"{v:.4g}") for k, v in coefficients.items()},
        n_rows=n_rows,
        error_frac=READ_ERROR_FRAC,
        p90_error_frac=READ_P90_FRAC,
        source=source,
    )
