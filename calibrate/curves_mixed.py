"""How decodes beside prompt chunks in one attention call are fitted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..costmodels.arrays import Array, Rows
from ..costmodels.attention_curve import attention_floor_s, attention_work, decode_coordinates
from ..costmodels.mixed_attention import idle_blocks, mixed_trend_s
from ..scenarios.hardware import Accelerator
from .curves import FINE_UNIT, SOFT, Bound, number, take
from .tables import Columns

MIXED = {"launch_s": 5e-6, "compute_frac": 0.6, "memory_frac": 0.85, "fill_keys": 150.0, "l2_frac": 1.0, "idle_s": 2e-9}
MIXED_STRENGTHS = (0.02, 0.02, 0.1, 0.1)


def mixed_attention(key: str, rows: Columns, gpu: Accelerator, source: str) -> Bound:
    """What decodes add to a prompt chunk of ``seq_len`` tokens that shares their call; see ``rows.beside_prompts``."""
    work = attention_work(
        batch=rows["batch_size"], q=np.ones_like(rows["kv_len"]), kv=rows["kv_len"], heads=rows["num_heads"], kv_heads=rows["num_kv_heads"],
        qk=rows["head_dim"], v=rows["head_dim"], causal=True, window=0.0, kv_bytes=np.where(rows["kv_cache_dtype"] == "fp8", 1.0, 2.0),
        peak=gpu.peak_flops_per_s("bf16"),
    )  # fmt: skip
    idle = idle_blocks(rows["batch_size"], rows["num_heads"], rows["seq_len"])

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return mixed_trend_s(take(work, at), gpu, c) + c["idle_s"] * idle[at]

    return Bound(
        key=key, source=source, seconds=rows["seconds"], trend=trend, coordinates=decode_coordinates(work),
        floor_s=attention_floor_s(work, gpu), start=MIXED, strengths=MIXED_STRENGTHS,
        shapes=number(rows["num_heads"], rows["num_kv_heads"]), size=rows["kv_len"], unit=FINE_UNIT, choices=SOFT,
    )  # fmt: skip


UNEVEN = {"key_s": 5e-8}


def uneven_attention(key: str, rows: Columns, source: str) -> Bound:
    """What the longest of the decodes beside a prompt adds to their call, over the same call with all decodes at their mean length."""
    even, keys = rows["even_us"] * 1e-6, rows["longest"] - rows["kv_len"]

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return even[at] + c["key_s"] * keys[at]

    flat = np.ones_like(keys)
    return Bound(
        key=key, source=source, seconds=rows["seconds"], trend=trend, coordinates=(flat,), floor_s=np.zeros_like(keys), start=UNEVEN,
        strengths=(0.0,), shapes=flat, size=rows["longest"], choices={},
    )  # fmt: skip
