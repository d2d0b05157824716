"""Which fitted families may price an operation, nearest first: by number format, head dimension, window and cache format."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import inf, log2

FORMAT_KIN = {"fp16": "bf16", "mxfp8": "fp8_block", "int8": "fp8", "mxfp4": "nvfp4", "fp4": "nvfp4"}
"""Number formats without fits of their own -> the measured format of the same width."""


@cache
def format_keys(family: str, dtype: str) -> tuple[str, ...]:
    """Fits to try for a number format: its own, its kin's, then fp8 and bf16."""
    return tuple(f"{family}.{d}" for d in dict.fromkeys((dtype, FORMAT_KIN.get(dtype, dtype), "fp8", "bf16")))


def attention_keys(phase: str, qk_dim: float, v_dim: float, window_tokens: float, kv_dtype: str, families: Iterable[str]) -> tuple[str, ...]:
    """Fits to try for attention: latents (``qk > v``) go to ``mla.<phase>``; else the nearest head dimension, window and cache format."""
    return _attention_keys(phase, qk_dim, v_dim, window_tokens, "fp8" if kv_dtype not in ("bf16", "fp16") else "bf16", _names(phase, tuple(families)))


@cache
def _names(phase: str, families: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f for f in families if f.startswith((f"attention.{phase}.", f"mla.{phase}.")))


@cache
def _attention_keys(phase: str, qk: float, v: float, window: float, kv: str, known: tuple[str, ...]) -> tuple[str, ...]:
    latent = qk > v > 0
    ranked = sorted(known, key=lambda name: _distance(name, latent, v, window, kv))
    return tuple(ranked[:1]) or (f"attention.{phase}",)


def _distance(name: str, latent: bool, v_dim: float, window: float, kv: str) -> tuple[float, ...]:
    """How far a family ``attention.<phase>.hd128[.w1024][.fp8]`` or ``mla.<phase>[.fp8]`` is from the call."""
    parts = name.split(".")[2:]
    own_kv = "fp8" if "fp8" in parts else "bf16"
    own_window = next((float(p[1:]) for p in parts if p[0] == "w"), inf)
    own_dim = next((float(p[2:]) for p in parts if p.startswith("hd")), v_dim or 1.0)
    wanted = window or inf
    reach = 0.0 if own_window == wanted else abs(log2(min(own_window, 65536.0)) - log2(min(wanted, 65536.0))) + 0.01
    return float(name.startswith("mla.") != latent), abs(log2(max(v_dim, 1.0) / own_dim)), reach, float(own_kv != kv)
