"""What a run costs: dollars on demand and on spot, energy, and dollars per million tokens; arrays hold one value per candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator, Cluster
from .arrays import Array, Reals, as_floats

Market = Literal["on-demand", "spot"]
HOUR_S = 3600.0
HOST_FRAC = 0.82
"""Power of host, fans and network over that of the GPUs: DGX H100 datasheet, 10.2 kW at most for 8 GPUs of 700 W."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Cost of a time span on a whole cluster: ``usd`` is NaN where no price is known; ``energy_j`` and ``power_w`` are upper bounds."""

    usd: Array
    gpu_h: Array
    energy_j: Array
    power_w: float


def price(cluster: Cluster, accelerator: Accelerator, time_s: Reals, market: Market = "on-demand", pue: float = 1.0) -> Price:
    """Cost of ``time_s`` (any shape) on all GPUs of the cluster; BadInput if a time is negative or ``pue`` is below 1.

    ``usd = n_gpus (time/3600) price``; ``power = n_gpus TDP (1 + host) pue``, as if every GPU drew its TDP; ``energy = power time``.
    Rent already includes energy: the two are not to be added.
    """
    t = as_floats(time_s)[0]
    if np.any(t < 0) or pue < 1:
        raise BadInput(f"time_s={time_s}, pue={pue}: the time must not be negative and pue must be at least 1")
    gpu_h = cluster.n_gpus * t / HOUR_S
    power_w = cluster.n_gpus * accelerator.tdp_w * (1 + HOST_FRAC) * pue
    return Price(usd=gpu_h * usd_per_gpu_h(cluster, market), gpu_h=gpu_h, energy_j=power_w * t, power_w=power_w)


def usd_per_gpu_h(cluster: Cluster, market: Market = "on-demand") -> float:
    """The cluster's price of one GPU for an hour; NaN where none is known."""
    rate = cluster.spot_usd_per_h if market == "spot" else cluster.on_demand_usd_per_h
    return rate if rate > 0 else float("nan")


def require_price(cluster: Cluster, market: Market = "on-demand") -> float:
    """The price of a GPU-hour; BadInput with the cure where none is known."""
    rate = usd_per_gpu_h(cluster, market)
    if np.isnan(rate):
        key = "spot" if market == "spot" else "on_demand"
        raise BadInput(f'{cluster.name} has no {market} price; add {key} = "2.50 USD/h" or your own figure to its cluster file')
    return rate


def usd_per_mtoken(cluster: Cluster, time_s: Reals, n_tokens: Reals, market: Market = "on-demand") -> Array:
    """Dollars per million tokens, ``1e6 n_gpus price (time/3600) / tokens``; NaN where no price is known."""
    t, n = as_floats(time_s, n_tokens)
    return 1e6 * cluster.n_gpus * t / HOUR_S * usd_per_gpu_h(cluster, market) / n


def break_even_spot_frac(cluster: Cluster) -> float:
    """Share of spot time that may be lost before on-demand is cheaper: ``1 - spot/on-demand``; NaN where a price is missing."""
    return 1 - usd_per_gpu_h(cluster, "spot") / usd_per_gpu_h(cluster)
