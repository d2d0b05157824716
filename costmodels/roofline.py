"""Seconds of each operation on one accelerator: a physical floor over calibrated efficiencies, evaluated as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.calibration import Calibration
from ..scenarios.hardware import Accelerator
from .arrays import Array, Reals, as_floats, soft_max
from .attention_curve import attention_floor_s, attention_pairs, decode_trend_s, prefill_trend_s
from .gemm_curve import gemm_bytes, gemm_floor_s, gemm_trend_s, weight_bytes

HEAD_DIMS = (64, 128, 192, 256, 512)


@dataclass(frozen=True, slots=True)
class Roofline:
    """Prices kernels on ``gpu`` with the efficiencies of ``calibration``. Inputs broadcast; every price is at or above its floor.

    ``host_link_bytes_per_s`` is one GPU's way to host memory per direction (default PCIe 4.0 x16: 16 GT/s x 16 lanes x 128/130).
    """

    gpu: Accelerator
    calibration: Calibration
    host_link_bytes_per_s: float = 31.5e9

    def gemm_s(self, m: Reals, n: Reals, k: Reals, dtype: str = "bf16") -> Array:
        """Seconds of ``[m,k]·[k,n]``; fp8 and fp4 include quantising bf16 activations. Zero-sized products cost nothing."""
        fit = self.calibration.fit(*_formats("gemm", dtype))
        price = gemm_trend_s(m, n, k, dtype, self.gpu, fit.coefficients)
        m, n, k = as_floats(m, n, k)
        return np.where(m * n * k > 0, np.maximum(price, gemm_floor_s(m, n, k, dtype, self.gpu)), 0.0)

    def gemm_floor_s(self, m: Reals, n: Reals, k: Reals, dtype: str = "bf16") -> Array:
        """``max(2·m·n·k/peak, bytes/bandwidth)``: see ``gemm_curve.gemm_floor_s``."""
        return gemm_floor_s(m, n, k, dtype, self.gpu)

    def attention_s(
        self,
        *,
        batch: Reals,
        q_tokens: Reals,
        kv_tokens: Reals,
        n_heads: Reals,
        n_kv_heads: Reals,
        qk_dim: Reals,
        v_dim: Reals,
        causal: bool = True,
        window_tokens: Reals = 0,
        dtype: str = "bf16",
        backward: bool = False,
        kernel: str = "best",
    ) -> Array:
        """Seconds of fused attention of one layer: ``batch`` sequences, the last ``q_tokens`` of ``kv_tokens`` ask.

        One query token prices as decode (split over the cache), more as prefill. ``backward=True`` gives the backward pass alone:
        forward time less its launch, times the measured backward/forward ratio (2.5 times the FLOPs at a lower efficiency).
        ``kernel="best"`` is the one measured in serving engines (paged FA2 on Ampere, FA3 on Hopper, TensorRT-LLM on Blackwell);
        ``"fa2"`` is plain FlashAttention-2, which training frameworks without FA3 run.
        """
        b, q, kv, h, g, qk, v, window = as_floats(batch, q_tokens, kv_tokens, n_heads, n_kv_heads, qk_dim, v_dim, window_tokens)
        peak = self.gpu.peak_flops_per_s(dtype)
        pairs = attention_pairs(q, kv, causal, window)
        span = np.where(window > 0, np.minimum(kv, window + (q > 1) * 128), kv)
        c = dict(self.calibration.fit(*_head_dims("attention.prefill", v)).coefficients)
        if kernel == "fa2":
            c["compute_frac"] = self.calibration.fit("attention.fa2").coefficients["compute_frac"] * (1 + c["small_head"] / 2)
        price = prefill_trend_s(pairs, b, q, span, h, g, qk, v, peak, self.gpu, c)
        if np.any(q <= 1):
            d = self.calibration.fit(*_head_dims("attention.decode", v)).coefficients
            reach = np.where(window > 0, np.minimum(kv, window), kv)
            price = np.where(q <= 1, decode_trend_s(b, reach, h, g, qk, v, peak, self.gpu, 2.0, d), price)
        held = np.where(window > 0, np.minimum(kv, window + q), kv)
        floor = attention_floor_s(pairs, b, q, held, h, g, qk, v, peak, self.gpu, 2.0)
        price = np.maximum(price, floor)
        if backward:
            ratio = self.calibration.fit("attention.backward").coefficients["time_ratio"]
            price = np.maximum(ratio * (price - c["launch_s"]) + 3 * c["launch_s"], 2.5 * floor)
        return np.where(b * q * kv * h > 0, price, 0.0)

    def attention_unfused_s(
        self, *, batch: Reals, q_tokens: Reals, kv_tokens: Reals, n_heads: Reals, qk_dim: Reals, v_dim: Reals, dtype: str = "bf16", backward: bool = False
    ) -> Array:
        """Seconds of attention without a fused kernel: ``QKᵀ``, mask + softmax + dropout over the score matrix, ``PV``.

        Forward FLOPs ``2·b·h·q·kv·(qk+v)`` (causality saves nothing); the score matrix crosses HBM 6 times at 2 bytes (written by QKᵀ,
        read and written by softmax, read and written by dropout, read by PV) and its dropout mask once at 1 byte. Backward: twice the
        FLOPs, and 8 crossings and the mask. Source: Korthikanti et al. 2022, section 4.1 (tensors kept: ``5·a·s²·b`` bytes).
        """
        b, q, kv, h, qk, v = as_floats(batch, q_tokens, kv_tokens, n_heads, qk_dim, v_dim)
        crossings, passes = (8.0, 2.0) if backward else (6.0, 1.0)
        scores = b * h * q * kv
        products = self.gemm_s(b * h * q, kv, qk, dtype) + self.gemm_s(b * h * q, v, kv, dtype)
        return passes * products + self.stream_s(scores * (2 * (crossings - 2) + 1))

    def grouped_gemm_s(self, tokens: Reals, n_experts_local: Reals, n: Reals, k: Reals, dtype: str = "bf16") -> Array:
        """Seconds of one product per local expert: ``tokens`` (expert-token pairs on this GPU) spread evenly over the experts.

        Compute is as one product of all rows, each expert's rows rounded up to a tile of 64; memory is every busy expert's weights once.
        """
        t, e, n, k = as_floats(tokens, n_experts_local, n, k)
        busy = np.maximum(np.minimum(e, t), 1)
        rows = busy * np.ceil(t / busy / 64) * 64
        c = self.calibration.fit(*_formats("gemm", dtype)).coefficients
        weights = busy * n * k * weight_bytes(dtype) / (self.gpu.hbm_bytes_per_s * c["memory_frac"])
        price = soft_max(self.gemm_s(rows, n, k, dtype), weights + c["launch_s"], c["sharpness"])
        return np.where(t > 0, np.maximum(price, self.grouped_gemm_floor_s(t, e, n, k, dtype)), 0.0)

    def grouped_gemm_floor_s(self, tokens: Reals, n_experts_local: Reals, n: Reals, k: Reals, dtype: str = "bf16") -> Array:
        """``max(2·t·n·k/peak, (rows in and out + weights of busy experts)/bandwidth)``."""
        t, e, n, k = as_floats(tokens, n_experts_local, n, k)
        moved = gemm_bytes(t, n, k, dtype) + (np.minimum(e, t) - 1) * n * k * weight_bytes(dtype)
        return np.maximum(2 * t * n * k / self.gpu.peak_flops_per_s(dtype), moved / self.gpu.hbm_bytes_per_s)

    def stream_s(self, n_bytes: Reals) -> Array:
        """Seconds of an elementwise kernel (norm, activation, residual, optimizer) that moves ``n_bytes``: bytes over achieved bandwidth."""
        c = self.calibration.fit("stream").coefficients
        (moved,) = as_floats(n_bytes)
        return np.where(moved > 0, c["launch_s"] + moved / (self.gpu.hbm_bytes_per_s * c["memory_frac"]), 0.0)

    def host_copy_s(self, n_bytes: Reals) -> Array:
        """Seconds to copy pinned memory over the GPU's host link, one direction: ``setup + bytes / (link · achieved fraction)``."""
        c = self.calibration.fit("host_copy").coefficients
        (moved,) = as_floats(n_bytes)
        return np.where(moved > 0, c["launch_s"] + moved / (self.host_link_bytes_per_s * c["link_frac"]), 0.0)

    def host_adam_s(self, n_params: Reals, host_bytes_per_s: float) -> Array:
        """Seconds of a fused AdamW step in host memory: per parameter 16 B read (fp32 weight, two moments, gradient), 12 B + 2 B written.

        ``30·Φ / (host DRAM bandwidth · achieved fraction)``; ``host_bytes_per_s`` is this rank's share.
        """
        c = self.calibration.fit("host_copy").coefficients
        (params,) = as_floats(n_params)
        out: Array = 30 * params / (host_bytes_per_s * c["dram_frac"])
        return out

    def error_frac(self, family: str) -> float:
        """Expected relative error of a price of this family (``gemm.bf16``, ``attention.prefill.hd128``, ``stream`` …)."""
        return self.calibration.fit(family, *_formats("gemm", family.rpartition(".")[2])).error_frac


def _formats(family: str, dtype: str) -> tuple[str, ...]:
    """Fits to try for a number format, nearest arithmetic first."""
    kin = {"fp16": "bf16", "fp8": "fp8", "mxfp8": "fp8_block", "int8": "fp8", "nvfp4": "nvfp4", "mxfp4": "nvfp4", "fp4": "nvfp4"}
    return tuple(f"{family}.{d}" for d in dict.fromkeys((dtype, kin.get(dtype, dtype), "fp8", "bf16")))


def _head_dims(family: str, v_dim: Array) -> tuple[str, ...]:
    """Fits to try for a head dimension: the nearest measured one first, then 128."""
    dim = float(np.max(v_dim)) if np.size(v_dim) else 128.0
    order = sorted(HEAD_DIMS, key=lambda d: abs(np.log2(max(dim, 1.0) / d)))
    return tuple(f"{family}.hd{d}" for d in order)
