"""A share of a card's SMs as a card of its own: what spatial partitions (MPS, green contexts) leave a kernel to run on."""

from __future__ import annotations

from dataclasses import replace

from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator
from .roofline import Roofline
from .serving_ops import ServeSystem

SATURATING_SM_FRAC = 0.4
"""Share of the SMs that draws the whole memory bandwidth; below it bandwidth falls in proportion. Assumed: the middle of the 0.3 to 0.5
that is reported for decode on split GPUs (semi-PD, arXiv 2504.19867, and work it compares with); no datasheet states it."""
PEAKS = tuple(name for name in Accelerator.__slots__ if name.endswith("_flops_per_s"))


def bandwidth_frac(sm_frac: float) -> float:
    """Share of the memory bandwidth that a share of the SMs can draw: ``min(1, x / SATURATING_SM_FRAC)``."""
    return min(1.0, sm_frac / SATURATING_SM_FRAC)


def sm_share(system: ServeSystem, sm_frac: float, *, left_bandwidth_frac: float = 1.0) -> ServeSystem:
    """The system as one partition sees it: ``round(x·n_sms)`` SMs, peaks in proportion, bandwidth ``min(bandwidth_frac(x), left)``.

    ``left_bandwidth_frac`` is what the other partition leaves. Efficiencies stay those of the whole card at the same shape; links and
    memory capacity are shared and stay. Raises BadInput unless both shares are more than 0 and at most 1.
    """
    if not 0 < sm_frac <= 1 or not 0 < left_bandwidth_frac <= 1:
        raise BadInput(f"sm_frac={sm_frac:g}, left_bandwidth_frac={left_bandwidth_frac:g}: both must be over 0 and at most 1")
    gpu = system.accelerator
    n_sms = max(1, round(sm_frac * gpu.n_sms))
    peaks = {name: getattr(gpu, name) * n_sms / gpu.n_sms for name in PEAKS}
    bandwidth = gpu.hbm_bytes_per_s * min(bandwidth_frac(n_sms / gpu.n_sms), left_bandwidth_frac)
    part = replace(gpu, n_sms=n_sms, hbm_bytes_per_s=bandwidth, **peaks)
    roofline = Roofline(part, system.roofline.calibration, system.roofline.host_link_bytes_per_s)
    return replace(system, accelerator=part, roofline=roofline)
