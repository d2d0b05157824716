"""The price of one rank's fused mixture-of-experts layer: routing, two grouped products over its experts, combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..scenarios.hardware import Accelerator
from .arrays import Array, Reals, as_floats, soft_max

FORMATS = {
    "bf16": ("bf16", 2.0), "fp8": ("fp8", 1.0), "fp8_block": ("fp8", 1.0), "nvfp4": ("fp4", 0.5625),
    "int4_wo": ("bf16", 0.5625), "w4a16_mxfp4": ("bf16", 0.53125), "w4a8_mxfp4_mxfp8": ("fp8", 0.53125),
}  # fmt: skip
"""Expert format -> (format of the arithmetic, bytes of one weight element with its scales)."""

SKEWS = {"balanced": 0, "power_law_1.01": 1, "power_law_1.2": 2}
"""Routing distributions measured, as levels of the correction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeWork:
    """One layer on one rank: ``tokens`` enter over all ``ep`` ranks; the rank holds ``experts/ep`` experts of width ``inter/tp``."""

    tokens: Array
    hidden: Array
    width: Array
    topk: Array
    experts: Array
    ep: Array
    skew: Array

    @property
    def pairs(self) -> Array:
        """Expert-token pairs over all ranks."""
        return self.tokens * self.topk

    @property
    def local(self) -> Array:
        """Experts of this rank."""
        return np.maximum(self.experts / self.ep, 1)


def moe_work(tokens: Reals, hidden: Reals, inter: Reals, topk: Reals, experts: Reals, tp: Reals, ep: Reals, skew: Reals) -> MoeWork:
    """The layer as arrays; ``skew`` is a level of SKEWS."""
    t, h, i, k, e, tp, ep, s = as_floats(tokens, hidden, inter, topk, experts, tp, ep, skew)
    return MoeWork(tokens=t, hidden=h, width=i / tp, topk=k, experts=e, ep=ep, skew=s)


def moe_floor_s(w: MoeWork, dtype: str, gpu: Accelerator) -> Array:
    """Seconds no kernel can beat for the rank's fair share: ``max(6·pairs/ep·h·i/peak, weights of the experts it must touch/bandwidth)``.

    At least ``min(local experts, topk/ep)`` experts are touched, and the rank reads and writes its tokens once.
    """
    arithmetic, width = FORMATS[dtype]
    rows = w.pairs / w.ep
    touched = np.minimum(w.local, np.maximum(w.topk / w.ep, np.minimum(rows, 1)))
    moved = 3 * touched * w.hidden * w.width * width + 4 * w.tokens / w.ep * w.hidden
    return np.maximum(6 * rows * w.hidden * w.width / gpu.peak_flops_per_s(arithmetic), moved / gpu.hbm_bytes_per_s)


def moe_trend_s(w: MoeWork, dtype: str, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds of the most loaded rank: ``launch + permute + softmax(compute, weights)``.

    Its rows are the fair share times ``1 + skew·(1 − 1/ep)``; busy experts follow from random routing under skew, else every expert up
    to the number of rows; each busy expert computes at least ``tile`` rows. Permuting moves every pair (``h_pass`` times the hidden,
    ``n_pass`` times the expert width) and the rank's own rows ``r_pass`` times.
    """
    arithmetic, width = FORMATS[dtype]
    imbalance = np.where(w.skew > 1, c["skew_2"], np.where(w.skew > 0, c["skew_1"], 0.0))
    fair = w.pairs / w.ep
    rows = fair * (1 + imbalance * (1 - 1 / w.ep))
    spread = w.local * (1 - np.exp(-c["spread"] * fair / w.local))
    busy = np.minimum(np.maximum(np.where(w.skew > 0, spread, rows), 1), w.local)
    padded = busy * np.maximum(rows / busy, c["tile"])
    fill = 1 + c["k_fill"] * (0.5 / w.hidden + 0.5 / w.width)
    compute = padded * fill * w.hidden * w.width * (6 / (gpu.peak_flops_per_s(arithmetic) * c["compute_frac"]))
    weights = busy * w.hidden * w.width * (3 * width / (gpu.hbm_bytes_per_s * c["memory_frac"]))
    permute = w.pairs * (w.hidden * c["h_pass"] + w.width * c["n_pass"]) + rows * w.hidden * c["r_pass"]
    return c["launch_s"] + permute * (2 / gpu.hbm_bytes_per_s) + w.tokens * c["token_s"] + soft_max(compute, weights, c["sharpness"])


def moe_coordinates(w: MoeWork) -> tuple[Array, ...]:
    """Coordinates of the correction shared by all shapes: pairs per expert (times 4096), local experts, width, skew level (powers of 2)."""
    return np.maximum(w.pairs / w.experts * 4096, 1), w.local, w.width, np.exp2(w.skew)


def moe_own_coordinates(w: MoeWork, tp: Array, number: Reals) -> tuple[Array, ...]:
    """Coordinates of the correction of single shapes: tokens, expert- over tensor-parallel degree (times 64), skew level, shape number."""
    return w.tokens, w.ep / tp * 64, np.exp2(w.skew), np.asarray(number) + 1.0


def moe_shape(hidden: float, inter: float, topk: float, experts: float) -> str:
    """A shape's label in a calibration: ``h4096i14336k2e8``."""
    return f"h{hidden:g}i{inter:g}k{topk:g}e{experts:g}"
