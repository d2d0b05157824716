"""The price of an element-wise pass over activations that the kernel before it has just written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..scenarios.hardware import Accelerator
from .arrays import Array


def pass_trend_s(n_bytes: Array, gpu: Accelerator, c: Mapping[str, float]) -> Array:
    """Seconds of a norm, activation or rotary embedding that reads and writes ``n_bytes`` in all.

    ``launch + (far + (1 − l2_gain)·near) / (bandwidth · memory_frac)``: what the kernel before wrote is still in L2 up to the share
    ``near_frac`` of it (``near``); the rest (``far``) goes through memory.
    """
    far = np.maximum(n_bytes - c["near_frac"] * gpu.l2_bytes, 0.0)
    near = n_bytes - far
    return c["launch_s"] + (far + (1 - c["l2_gain"]) * near) / (gpu.hbm_bytes_per_s * c["memory_frac"])


def pass_floor_s(n_bytes: Array, gpu: Accelerator) -> Array:
    """Least seconds of it: what L2 cannot hold goes through memory."""
    return np.maximum(n_bytes - gpu.l2_bytes, 0.0) / gpu.hbm_bytes_per_s
