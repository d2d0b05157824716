"""Seconds of each operation on one accelerator: a physical floor over calibrated efficiencies, evaluated as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..scenarios.calibration import Calibration, FamilyFit
from ..scenarios.hardware import Accelerator
from .arrays import Array, Reals, as_floats, in_chunks, soft_max
from .attention_curve import (
    KV_HEADS_AXIS,
    AttentionWork,
    attention_floor_s,
    attention_work,
    decode_coordinates,
    decode_trend_s,
    prefill_coordinates,
    prefill_trend_s,
)
from .gemm_curve import gemm_bytes, gemm_floor_s, gemm_trend_s, quantise_s, weight_bytes
from .grid_curve import GridCurve
from .lookup import attention_keys, format_keys, moe_key
from .moe_curve import SKEWS, moe_coordinates, moe_floor_s, moe_own_coordinates, moe_shape, moe_trend_s, moe_work
from .pass_curve import pass_trend_s


@dataclass(frozen=True, slots=True)
class Roofline:
    """Prices kernels on ``gpu`` with the efficiencies of ``calibration``. Inputs broadcast; every price is at or above its floor.

    ``host_link_bytes_per_s`` is one GPU's way to host memory per direction (default PCIe 4.0 x16: 16 GT/s x 16 lanes x 128/130).
    """

    gpu: Accelerator
    calibration: Calibration
    host_link_bytes_per_s: float = 31.5e9
    _curves: dict[str, GridCurve | None] = field(default_factory=dict, repr=False, compare=False)

    def gemm_s(self, m: Reals, n: Reals, k: Reals, dtype: str = "bf16") -> Array:
        """Seconds of ``[m,k]·[k,n]``; fp8 and fp4 include quantising bf16 activations. Zero-sized products cost nothing."""
        key, fit = self._fit(format_keys("gemm", dtype))
        c, correct = fit.coefficients, self.curve(key)

        def price(m: Array, n: Array, k: Array) -> Array:
            trend = gemm_trend_s(m, n, k, dtype, self.gpu, c)
            some = m * n * k > 0
            if correct is not None:
                trend = trend * np.exp(correct.log_factor(np.maximum(m, 1), np.maximum(n, 1), np.maximum(k, 1)))
            return np.where(some, np.maximum(trend, gemm_floor_s(m, n, k, dtype, self.gpu)), 0.0)

        return in_chunks(price, *as_floats(m, n, k))

    def quantise_s(self, m: Reals, k: Reals, dtype: str) -> Array:
        """Seconds of ``gemm_s`` that turn ``[m,k]`` bf16 activations into the product's format; 0 where the fit holds no such pass."""
        c = self._fit(format_keys("gemm", dtype))[1].coefficients
        m, k = as_floats(m, k)
        return quantise_s(m, m * k, weight_bytes(dtype), self.gpu, c) if "quantise_frac" in c else np.zeros_like(m * k)

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
        kv_dtype: str = "bf16",
        backward: bool = False,
        kernel: str = "best",
        phase: str = "",
    ) -> Array:
        """Seconds of fused attention of one layer: ``batch`` sequences, the last ``q_tokens`` of ``kv_tokens`` ask.

        One query token prices as decode (split over the cache), more as prefill, unless ``phase`` names either.
        ``backward=True`` gives the backward pass alone: forward time less its launch, times the published backward/forward ratio
        (2.5 times the FLOPs at a lower efficiency).
        ``kernel="best"`` is the one measured in serving engines (paged FA2 on Ampere, FA3 on Hopper, TensorRT-LLM on Blackwell);
        ``"fa2"`` is plain FlashAttention-2, which training frameworks without FA3 run. Latent attention over its own keys (``qk > v``)
        takes the faster of the measured MLA kernel and plain attention of as many FLOPs: engines rebuild keys and values for prompts,
        while the kernel measured on Hopper works on the latents, at 3.4 times the FLOPs. ``"measured"`` is that kernel.
        """
        dims, kv_bytes = (float(np.max(qk_dim, initial=1)), float(np.max(v_dim, initial=1))), weight_bytes(kv_dtype)
        reach = float(np.max(np.where(np.greater_equal(window_tokens, kv_tokens), 0, window_tokens), initial=0))
        peak = self.gpu.peak_flops_per_s(dtype)

        def price(b: Array, q: Array, kv: Array, h: Array, g: Array, qk: Array, v: Array, w: Array) -> Array:
            work = attention_work(
                batch=b, q=q, kv=kv, heads=h, kv_heads=g, qk=qk, v=v, causal=causal, window=w, kv_bytes=kv_bytes, peak=peak
            )
            floor = attention_floor_s(work, self.gpu)
            one = q <= 1 if not phase else np.full(q.shape, phase == "decode")
            launch = 0.0
            if backward or not np.all(one):
                forward, launch = self._prefill_s(work, *dims, reach, kv_dtype, kernel)
            if not backward and np.any(one):
                decode = self._decode_s(work, *dims, reach, kv_dtype)
                forward = decode if np.all(one) else np.where(one, decode, forward)
            out = np.maximum(forward, floor)
            if backward:
                ratio = self.calibration.fit("attention.backward").coefficients["time_ratio"]
                out = np.maximum(ratio * np.maximum(out - launch, 0) + 3 * launch, 2.5 * floor)
            return np.where(b * q * kv * h > 0, out, 0.0)

        return in_chunks(price, *as_floats(batch, q_tokens, kv_tokens, n_heads, n_kv_heads, qk_dim, v_dim, window_tokens))

    def _prefill_s(self, work: AttentionWork, qk: float, v: float, window: float, kv_dtype: str, kernel: str) -> tuple[Array, float]:
        if kernel == "best" and qk > v > 0:
            own, rebuilt = (self._prefill_s(work, dim, v, window, kv_dtype, "measured") for dim in (qk, v))
            return np.minimum(own[0], rebuilt[0]), min(own[1], rebuilt[1])
        key, fit = self._fit(attention_keys("prefill", qk, v, window, kv_dtype, self.calibration.families))
        c, correct = fit.coefficients, self.curve(key)
        if kernel == "fa2":
            plain = self.calibration.fit("attention.fa2").coefficients["compute_frac"] * (1 + c["small_head"] / 2)
            c, correct = {**c, "compute_frac": plain}, None
        price = prefill_trend_s(work, self.gpu, c)
        if correct is not None:
            factor = np.exp(correct.log_factor(*(np.maximum(x, 1) for x in prefill_coordinates(work))))
            price = price * factor
            last = 2.0 ** float(correct.axes[0].nodes[-1])
            if np.any(work.q > last):
                # past the longest measured prompt: no faster than the rate there, or than the one that all rows tend to
                s = np.minimum(last / np.maximum(work.q, 1), 1.0)
                edge = replace(work, q=work.q * s, kv=work.kv * s, pairs=work.pairs * s * s, span=work.span * s, held=work.held * s)
                flops = 2 * work.batch * work.heads * work.pairs * (work.qk + work.v)
                seen = s * s * flops / np.maximum(prefill_trend_s(edge, self.gpu, c) * factor, 1e-12)
                rate = np.maximum(seen, work.peak_flops_per_s * c["compute_frac"])
                price = np.where(work.q > last, np.maximum(price, flops / rate), price)
        return price, c["launch_s"]

    def _decode_s(self, work: AttentionWork, qk: float, v: float, window: float, kv_dtype: str) -> Array:
        key, fit = self._fit(attention_keys("decode", qk, v, window, kv_dtype, self.calibration.families))
        price, correct = decode_trend_s(work, self.gpu, fit.coefficients), self.curve(key)
        if correct is not None:
            at = decode_coordinates(work, correct.last(KV_HEADS_AXIS))
            price = price * np.exp(correct.log_factor(*(np.maximum(x, 1) for x in at)))
        return price

    def attention_unfused_s(
        self,
        *,
        batch: Reals,
        q_tokens: Reals,
        kv_tokens: Reals,
        n_heads: Reals,
        qk_dim: Reals,
        v_dim: Reals,
        dtype: str = "bf16",
        backward: bool = False,
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
        c = self._fit(format_keys("gemm", dtype))[1].coefficients
        weights = busy * n * k * weight_bytes(dtype) / (self.gpu.hbm_bytes_per_s * c["memory_frac"])
        price = soft_max(self.gemm_s(rows, n, k, dtype), weights + c["launch_s"], c["sharpness"])
        return np.where(t > 0, np.maximum(price, self.grouped_gemm_floor_s(t, e, n, k, dtype)), 0.0)

    def grouped_gemm_floor_s(self, tokens: Reals, n_experts_local: Reals, n: Reals, k: Reals, dtype: str = "bf16") -> Array:
        """``max(2·t·n·k/peak, (rows in and out + weights of busy experts)/bandwidth)``."""
        t, e, n, k = as_floats(tokens, n_experts_local, n, k)
        moved = gemm_bytes(t, n, k, dtype) + (np.minimum(e, t) - 1) * n * k * weight_bytes(dtype)
        return np.maximum(2 * t * n * k / self.gpu.peak_flops_per_s(dtype), moved / self.gpu.hbm_bytes_per_s)

    def moe_layer_s(
        self,
        tokens: Reals,
        *,
        hidden: float,
        inter: float,
        topk: float,
        n_experts: float,
        tp: Reals = 1,
        ep: Reals = 1,
        routing: str = "balanced",
        dtype: str = "bf16",
        kernel: str = "",
    ) -> Array:
        """Seconds of the most loaded rank of a fused MoE layer as serving engines run it (no communication).

        ``tokens`` enter over all ``ep`` ranks; ``inter`` is split ``tp`` ways; ``routing`` is a key of SKEWS; ``kernel`` names a measured
        backend (default: ``lookup.moe_key``). One shape per call: its own correction applies if it was measured.
        """
        split = float(np.max(as_floats(ep)[0] / as_floats(tp)[0], initial=0))
        best = moe_key(self.calibration.families, dtype, kernel, moe_shape(hidden, inter, topk, n_experts), split)
        key, fit = self._fit((best,))
        own = self.calibration.families.get(f"{key}.shapes")
        label = moe_shape(hidden, inter, topk, n_experts)
        shape = self.curve(f"{key}.shapes") if own is not None and label in own.labels else None
        number = own.labels.index(label) if own is not None and shape is not None else 0
        shared, c = self.curve(key), fit.coefficients

        def price(tokens: Array, tp: Array, ep: Array) -> Array:
            work = moe_work(tokens, hidden, inter, topk, n_experts, tp, ep, float(SKEWS[routing]))
            log = 0.0 if shared is None else shared.log_factor(*moe_coordinates(work))
            if shape is not None:
                log = log + shape.log_factor(*moe_own_coordinates(work, tp, number))
            out = moe_trend_s(work, dtype, self.gpu, c) * np.exp(log)
            return np.where(tokens > 0, np.maximum(out, moe_floor_s(work, dtype, self.gpu)), 0.0)

        return in_chunks(price, *as_floats(tokens, tp, ep))

    def stream_s(self, n_bytes: Reals) -> Array:
        """Seconds of an elementwise kernel (norm, activation, residual, optimizer): ``launch + bytes / achieved bandwidth``."""
        c = self.calibration.fit("stream").coefficients
        (moved,) = as_floats(n_bytes)
        return np.where(moved > 0, c["launch_s"] + moved / (self.gpu.hbm_bytes_per_s * c["memory_frac"]), 0.0)

    def pass_s(self, n_bytes: Reals) -> Array:
        """Seconds of an element-wise kernel over what the kernel before wrote, out of L2 where such passes were measured on this card."""
        if "pass" not in self.calibration.families:
            return self.stream_s(n_bytes)
        (moved,) = as_floats(n_bytes)
        return np.where(moved > 0, pass_trend_s(moved, self.gpu, self.calibration.fit("pass").coefficients), 0.0)

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
        return self._fit((family, *format_keys("gemm", family.rpartition(".")[2])))[1].error_frac

    def interval_frac(self, family: str, price_s: Reals, octaves_beyond: Reals = 0) -> Array:
        """Half width of the 80 % interval around a price, as a fraction of it; wider by each octave outside the sizes measured."""
        fit = self._fit((family, *format_keys("gemm", family.rpartition(".")[2])))[1]
        price, beyond = as_floats(price_s, octaves_beyond)
        if not fit.interval_edges:
            return np.broadcast_to(fit.p90_error_frac + fit.beyond_frac * beyond, np.broadcast_shapes(price.shape, beyond.shape))
        at = np.clip(np.searchsorted(fit.interval_edges, price, side="right") - 1, 0, len(fit.interval_edges) - 1)
        out: Array = np.asarray(fit.interval_frac)[at] + fit.beyond_frac * np.maximum(beyond, 0)
        return out

    def octaves_beyond(self, family: str, *coordinates: Reals) -> Array:
        """How many octaves a point lies outside the sizes measured, on its farthest axis; ``coordinates`` are those of the correction
        (products: m, n, k; attention: tokens, sequences, KV heads, group). 0 inside, and for families without a correction.
        """
        out: Array = np.zeros(np.broadcast_shapes(*(np.shape(x) for x in coordinates)))
        for axis, x in zip(self._fit((family, *format_keys("gemm", family.rpartition(".")[2])))[1].axes, coordinates, strict=False):
            at = np.log2(np.maximum(as_floats(x)[0], 1e-9))
            out = np.maximum(out, np.maximum(at - np.log2(axis[-1]), np.log2(axis[0]) - at))
        return out

    def _fit(self, keys: tuple[str, ...]) -> tuple[str, FamilyFit]:
        fit = self.calibration.fit(*keys)
        return next(k for k in keys if k in self.calibration.families), fit

    def curve(self, key: str) -> GridCurve | None:
        """The correction of one family, unpacked on first use; None if it has none."""
        if key not in self._curves:
            fit = self.calibration.families.get(key)
            self._curves[key] = GridCurve.of(fit.axes, self.calibration.correction(fit)) if fit and fit.axes else None
        return self._curves[key]
