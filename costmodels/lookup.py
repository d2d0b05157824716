"""Which fitted families may price an operation, nearest first: by number format, head dimension, window and cache format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from math import log2

from ..scenarios.calibration import FamilyFit

NO_WINDOW = 65536.0

FORMAT_KIN = {"fp16": "bf16", "mxfp8": "fp8_block", "int8": "fp8", "mxfp4": "nvfp4", "fp4": "nvfp4"}
"""Number formats without fits of their own -> the measured format of the same width."""


@cache
def format_keys(family: str, dtype: str) -> tuple[str, ...]:
    """Fits to try for a number format: its own, its kin's, then fp8 and bf16."""
    return tuple(f"{family}.{d}" for d in dict.fromkeys((dtype, FORMAT_KIN.get(dtype, dtype), "fp8", "bf16")))


def attention_keys(
    phase: str, qk_dim: float, v_dim: float, window_tokens: float, kv_dtype: str, families: Iterable[str]
) -> tuple[str, ...]:
    """Fits to try for attention: latents (``qk > v``) go to ``mla.<phase>``; else the nearest head dimension, window and cache format."""
    return _nearest(phase, qk_dim, v_dim, window_tokens, kv_dtype not in ("bf16", "fp16"), tuple(families))


@cache
def _nearest(phase: str, qk: float, v: float, window: float, narrow: bool, families: tuple[str, ...]) -> tuple[str, ...]:
    known = [f for f in families if f.startswith((f"attention.{phase}.", f"mla.{phase}"))]
    return (min(known, key=lambda name: _distance(name, qk > v > 0, v, window, narrow), default=f"attention.{phase}"),)


def _distance(name: str, latent: bool, v_dim: float, window: float, narrow: bool) -> tuple[float, ...]:
    """How far a family ``attention.<phase>.hd128[.w1024][.fp8]`` or ``mla.<phase>[.fp8]`` is from the call; no window counts as 64K."""
    parts = name.split(".")[2:]
    own_window = next((float(p[1:]) for p in parts if p[0] == "w"), NO_WINDOW)
    own_dim = next((float(p[2:]) for p in parts if p.startswith("hd")), v_dim or 1.0)
    wanted = min(window or NO_WINDOW, NO_WINDOW)
    return (
        float(name.startswith("mla.") != latent),
        abs(log2(max(v_dim, 1.0) / own_dim)),
        abs(log2(own_window / wanted)),
        float(("fp8" in parts) != narrow),
    )


def moe_key(families: Mapping[str, FamilyFit], dtype: str, kernel: str, shape: str, ep_over_tp: float) -> str:
    """The MoE kernel ``moe.<dtype>.<kernel>`` to price with: one that measured this shape, then one measured nearest to the split of
    experts over widths (engines switch kernels with it), then the one with most rows. An unknown key where the format was not measured.
    """

    def distance(key: str) -> tuple[float, ...]:
        own = families.get(f"{key}.shapes")
        if own is None:
            return (1.0, 0.0, -families[key].n_rows)
        nodes, at = own.axes[1], max(ep_over_tp * 64, 1e-9)
        beyond = max(log2(nodes[0] / at), log2(at / nodes[-1]), 0.0)
        return (float(shape not in own.labels), beyond, -families[key].n_rows)

    known = [k for k in families if k.startswith(f"moe.{dtype}.") and k.count(".") == 2 and (not kernel or k.endswith(kernel))]
    return min(known, key=distance, default=f"moe.{dtype}.{kernel}")
