"""How each kind of kernel is fitted: its trend, starting coefficients, correction axes and stiffness, bound to the rows measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..costmodels.arrays import Array, Rows
from ..costmodels.attention_curve import (
    attention_floor_s,
    attention_work,
    decode_coordinates,
    decode_trend_s,
    prefill_coordinates,
    prefill_trend_s,
)
from ..costmodels.gemm_curve import gemm_floor_s, gemm_trend_s
from ..costmodels.moe_curve import moe_coordinates, moe_floor_s, moe_own_coordinates, moe_shape, moe_trend_s, moe_work
from ..costmodels.pass_curve import pass_floor_s, pass_trend_s
from ..scenarios.hardware import Accelerator
from .tables import Columns

COARSE_UNIT, FINE_UNIT = 0.014, 0.008
"""Finest unit of a packed correction (in ln): its rounding, 0.3 units on average, adds in quadrature to errors of 2 to 4 %."""

Trend = Callable[[Mapping[str, float], Rows], Array]
SOFT: dict[str, tuple[float, ...]] = {"sharpness": (1.0, 2.0, 4.0)}
"""Sharpness of soft maxima: the values that need no powers."""
FILL = {"fill_keys": 150.0}
TILES: dict[str, tuple[float, ...]] = {"tile": (64.0, 128.0)}
"""Start-up of a thread block and its query rows, which only short chunks after long pasts tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One family's rows bound to its formulas: ``trend(coefficients, rows)``, ``coordinates``, ``floor_s`` and measured ``seconds``.

    ``shapes`` numbers the shapes that a left-out test removes whole, ``size`` is what its extrapolation test cuts; ``strengths`` is the
    stiffness of each correction axis against steps, ``bends`` against changes of slope. ``labels`` name the
    values of the last of ``own_coordinates``, the axes of a second correction that tells shapes apart (none: no second correction).
    ``pull`` holds coefficients near ``start`` (see ``fit_trend``).
    """

    key: str
    source: str
    seconds: Array
    trend: Trend
    coordinates: tuple[Array, ...]
    floor_s: Array
    start: Mapping[str, float]
    strengths: tuple[float, ...]
    shapes: Array
    size: Array
    min_octaves: float = 0.05
    unit: float = COARSE_UNIT
    bends: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    own_coordinates: tuple[Array, ...] = ()
    own_strengths: tuple[float, ...] = ()
    choices: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: SOFT)
    pull: float = 0.0


GEMM_STRENGTHS = (0.1, 0.05, 0.05)
PREFILL_STRENGTHS = (0.02, 0.02, 0.02, 0.02)
DECODE_STRENGTHS = (0.003, 0.003, 0.003, 0.1)
MLA_STRENGTHS = (0.02, 0.02, 0.02, 0.02)
MOE_STRENGTHS, MOE_OWN_STRENGTHS = (0.1, 0.1, 0.1, 0.1), (0.005, 0.01, 0.005, 0.0)
"""Stiffness of each axis of a correction. Heads of one group share their cache, so decode hardly depends on the group."""

GEMM = {
    "launch_s": 3e-6,
    "compute_frac": 0.8,
    "memory_frac": 0.8,
    "k_fill": 100.0,
    "narrow": 0.2,
    "split": 1.0,
    "spill": 0.05,
    "l2_frac": 0.7,
}
QUANTISED = {"quantise_frac": 0.5, "row_s": 3e-7, "l2_gain": 0.5, "near_frac": 0.4}
HOST_BOUND = {"host_s": 8e-5, "ragged": 0.1}
PREFILL = {"launch_s": 1e-5, "compute_frac": 0.6, "memory_frac": 0.5, "small_head": 0.05}
DECODE = {"launch_s": 8e-6, "memory_frac": 0.9, "compute_frac": 0.5, "wave_s": 2e-6, "per_key_s": 2e-10, "serial_key_s": 2e-10}
MOE = {
    "launch_s": 2.5e-5,
    "compute_frac": 0.5,
    "memory_frac": 0.7,
    "tile": 16.0,
    "k_fill": 100.0,
    "h_pass": 1.0,
    "n_pass": 1.0,
    "r_pass": 1.0,
    "token_s": 1e-9,
    "skew_1": 0.2,
    "skew_2": 0.3,
    "spread": 0.7,
}
STREAM = {"memory_frac": 0.85}
PASS = {"launch_s": 2e-6, "memory_frac": 0.85, "l2_gain": 0.6, "near_frac": 0.5}


def gemm(key: str, dtype: str, rows: Columns, gpu: Accelerator, source: str) -> Bound:
    """A linear layer of one number format."""
    m, n, k = rows["m"], rows["n"], rows["k"]
    start = dict(GEMM) | (QUANTISED if dtype != "bf16" else {}) | (HOST_BOUND if dtype == "fp8_block" else {})

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return gemm_trend_s(m[at], n[at], k[at], dtype, gpu, c)

    return Bound(
        key=key,
        source=source,
        seconds=rows["seconds"],
        trend=trend,
        coordinates=(m, n, k),
        floor_s=gemm_floor_s(m, n, k, dtype, gpu),
        start=start,
        strengths=GEMM_STRENGTHS,
        shapes=number(n, k),
        size=m,
    )


def attention(key: str, phase: str, rows: Columns, gpu: Accelerator, source: str, latent: bool) -> Bound:
    """Prefill or decode of one head dimension, window and cache format, or of cached latents."""
    decode = phase == "decode"
    new, heads, narrow = rows["tokens"], rows["num_heads"], rows["kv_cache_dtype"] == "fp8"
    past = np.nan_to_num(rows.get("prefix_len", np.zeros_like(new)))
    kv = new + past
    blocks = past.any()
    kv_heads = rows["num_kv_heads"] if not latent else np.ones_like(heads) if decode else heads
    dims = (576.0, 512.0) if latent and decode else (192.0, 128.0) if latent else (rows["head_dim"], rows["head_dim"])
    work = attention_work(
        batch=rows["batch_size"],
        q=np.ones_like(kv) if decode else new,
        kv=kv,
        heads=heads,
        kv_heads=kv_heads,
        qk=dims[0],
        v=dims[1],
        causal=True,
        window=rows.get("window_size", 0.0),
        kv_bytes=np.where(narrow, 1.0, 2.0),
        peak=gpu.peak_flops_per_s("bf16"),
    )
    price: Any = decode_trend_s if decode else prefill_trend_s

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        out: Array = price(take(work, at), gpu, c)
        return out

    return Bound(
        key=key,
        source=source,
        seconds=rows["seconds"],
        trend=trend,
        coordinates=decode_coordinates(work) if decode else prefill_coordinates(work),
        floor_s=attention_floor_s(work, gpu),
        start=DECODE if decode else {**PREFILL, **FILL} if blocks else PREFILL,
        choices={**SOFT, **TILES} if blocks else SOFT,
        strengths=MLA_STRENGTHS if latent else DECODE_STRENGTHS if decode else PREFILL_STRENGTHS,
        shapes=number(heads, kv_heads),
        size=kv,
        unit=FINE_UNIT if decode else COARSE_UNIT,
    )


def moe(key: str, dtype: str, rows: Columns, gpu: Accelerator, source: str) -> Bound:
    """A fused expert layer of one number format and backend; each expert shape has a second correction of its own."""
    columns = [rows[n] for n in ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "tp_size", "ep_size", "skew")]
    work = moe_work(*columns)
    labels, number = np.unique([moe_shape(*shape) for shape in zip(*columns[1:5], strict=True)], return_inverse=True)

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return moe_trend_s(take(work, at), dtype, gpu, c)

    return Bound(
        key=key,
        source=source,
        seconds=rows["seconds"],
        trend=trend,
        coordinates=moe_coordinates(work),
        floor_s=moe_floor_s(work, dtype, gpu),
        start=MOE,
        strengths=MOE_STRENGTHS,
        shapes=number.astype(float),
        size=rows["num_tokens"],
        min_octaves=0.45,
        labels=tuple(map(str, labels)),
        own_coordinates=moe_own_coordinates(work, rows["tp_size"], number),
        own_strengths=MOE_OWN_STRENGTHS,
    )


def stream(key: str, n_bytes: Array, seconds: Array, gpu: Accelerator, source: str) -> Bound:
    """Element-wise work that moves ``n_bytes`` through memory: no correction; few launch times are tried, large sizes hide it."""

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return c["launch_s"] + n_bytes[at] / (gpu.hbm_bytes_per_s * c["memory_frac"])

    flat = np.ones_like(n_bytes)
    return Bound(
        key=key,
        source=source,
        seconds=seconds,
        trend=trend,
        coordinates=(flat,),
        floor_s=n_bytes / gpu.hbm_bytes_per_s,
        start=STREAM,
        choices={"launch_s": (2e-6, 4e-6, 8e-6)},
        strengths=(0.0,),
        shapes=flat,
        size=n_bytes,
    )


def layer_pass(key: str, n_bytes: Array, seconds: Array, gpu: Accelerator, source: str) -> Bound:
    """Norms, activations and rotary embeddings of an engine's layers, which find their inputs in L2: no correction."""

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return pass_trend_s(n_bytes[at], gpu, c)

    flat = np.ones_like(n_bytes)
    return Bound(
        key=key, source=source, seconds=seconds, trend=trend, coordinates=(flat,), floor_s=pass_floor_s(n_bytes, gpu), start=PASS,
        strengths=(0.0,), shapes=flat, size=n_bytes, choices={},
    )  # fmt: skip


def take(work: Any, at: Rows) -> Any:
    """The same dataclass with every array field indexed by ``at`` (constants stay)."""
    kind = type(work)
    values = {name: getattr(work, name) for name in kind.__slots__}
    return kind(**{name: v[at] if isinstance(v, np.ndarray) and v.ndim else v for name, v in values.items()})


def number(*columns: Array) -> Array:
    """A running number for each distinct combination of the columns."""
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel().astype(float)
