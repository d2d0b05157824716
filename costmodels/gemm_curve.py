"""The price of a matrix product: a physical floor over an efficiency that falls with partial tiles, waves and short k."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..scenarios.hardware import Accelerator
from .arrays import Array, Reals, as_floats, soft_max

WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp32": 4.0,
    "tf32": 4.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "mxfp8": 1.0,
    "int8": 1.0,
    "nvfp4": 0.5625,
}
"""Bytes of one stored weight element; nvfp4 is 4 bits and one 8-bit scale per 16 elements."""


def weight_bytes(dtype: str) -> float:
    """Bytes of one weight element of this format; formats of 4 bits count their block scales."""
    return WEIGHT_BYTES.get(dtype, 0.5625 if "4" in dtype else 2.0)


def gemm_bytes(m: Reals, n: Reals, k: Reals, dtype: str) -> Array:
    """Bytes a product must move: ``a·m·k + w·n·k + a·m·n`` with activations of ``a`` bytes (bf16 unless fp32) and weights of ``w``."""
    m, n, k = as_floats(m, n, k)
    act = 4.0 if dtype in ("fp32", "tf32") else 2.0
    return act * m * k + weight_bytes(dtype) * n * k + act * m * n


def gemm_floor_s(m: Reals, n: Reals, k: Reals, dtype: str, gpu: Accelerator) -> Array:
    """Seconds no kernel can beat: ``max(2·m·n·k / peak, bytes / HBM bandwidth)``."""
    m, n, k = as_floats(m, n, k)
    return np.maximum(2 * m * n * k / gpu.peak_flops_per_s(dtype), gemm_bytes(m, n, k, dtype) / gpu.hbm_bytes_per_s)


def gemm_trend_s(m: Reals, n: Reals, k: Reals, dtype: str, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds of ``C[m,n] = A[m,k]·W[n,k]ᵀ`` from the fitted coefficients ``c`` of the format.

    ``launch + softmax(compute, memory) + quantise``, at least about ``host_s`` where the host launches several kernels.
    Compute counts whole 128-wide (or 64-wide) tiles in whole waves of SMs with ``k_fill`` elements of pipeline fill, at
    ``compute_frac`` of peak, unless splitting k (cost ``split``) fills the card, and slows by ``spill`` once the activations (in the
    product's format) outgrow the share ``l2_frac`` of L2; memory is the bytes at ``memory_frac`` of bandwidth.
    """
    m, n, k = as_floats(m, n, k)
    sms = float(gpu.n_sms)
    wide = np.ceil(np.ceil(m * (1 / 128)) * np.ceil(n * (1 / 128)) * (1 / sms)) * (sms * 128 * 128)
    height = np.minimum(np.ceil(m * (1 / 16)) * 16, 64)
    tiles = np.ceil(m * (1 / 64)) * np.ceil(n * (1 / 64))
    narrow = np.ceil(tiles * (1 / sms)) * height * (sms * 64 * (1 + c["narrow"]))
    area = np.maximum(np.minimum(np.minimum(wide, narrow), tiles * height * (64 * (1 + c["split"]))), m * n)
    compute = area * (k + c["k_fill"]) * (2 / (gpu.peak_flops_per_s(dtype) * c["compute_frac"]))
    rows, width = m * k, weight_bytes(dtype)
    if "l2_frac" in c:
        spilled = np.square(rows * (width / (gpu.l2_bytes * c["l2_frac"])))
        compute = compute * (1 + c["spill"] * (spilled / (1 + spilled)))
    memory = (width * rows + width * (n * k) + 2 * (m * n)) * (1 / (gpu.hbm_bytes_per_s * c["memory_frac"]))
    price = c["launch_s"] + soft_max(compute, memory, c["sharpness"])
    if "quantise_frac" in c:
        price = price + quantise_s(m, rows, width, gpu, c)
    if "host_s" in c:
        host = c["host_s"] * (1 + c["ragged"] * (np.floor(m * 0.25) * 4 != m))
        price = soft_max(price, host, 4)
    return price


def quantise_s(m: Array, rows: Array, width: float, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds to turn ``m`` rows of bf16 activations into the product's format before it runs.

    ``(2 + w)·m·k bytes`` at ``quantise_frac`` of bandwidth, faster by ``l2_gain`` while they fit in the share ``near_frac`` of L2, and
    ``row_s/SMs`` per row.
    """
    near: Array | float = 1.0
    if "near_frac" in c:
        near = 1 - c["l2_gain"] / (1 + np.square(rows * (2 / (gpu.l2_bytes * c["near_frac"]))))
    return rows * near * ((2 + width) / (gpu.hbm_bytes_per_s * c["quantise_frac"])) + m * (c.get("row_s", 0.0) / gpu.n_sms)
