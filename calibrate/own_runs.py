"""Reads what ``calibrate run`` measured on a card as the tables that ``fit`` and ``check`` know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..scenarios.errors import BadFile
from .tables import pandas, read_frame

FAMILIES = {
    "gemm": "aic_gemm",
    "attention_context": "aic_attention_context",
    "attention_generation": "aic_attention_generation",
    "mla_context": "aic_mla_context",
    "mla_generation": "aic_mla_generation",
    "moe": "aic_moe",
    "nccl": "aic_nccl",
    "copy": "device_copy",
}
"""Kernel family of a run -> table. Families not listed (parts of layers, host copies, launches …) fit nothing yet."""

DEFAULTS = {"kv_cache_dtype": "bfloat16", "window_size": 0}
PLAIN = {"prefix_len": 0, "ragged": 0}
"""Columns of special cases and the value of the ordinary ones, which alone are kept."""

ARITHMETIC = {"gemm": ("bfloat16",)}
"""Formats kept per family: quantised products of a run hold no quantisation of activations, those of the tables do."""


def is_run(path: Path) -> bool:
    """Whether a Parquet file was written by ``calibrate run``: its rows name a kernel family and a mode."""
    pandas()
    import pyarrow.parquet

    try:
        return {"family", "mode", "gpu", "latency_us"} <= set(pyarrow.parquet.read_schema(path).names)
    except Exception:
        return False


def tables_of(path: Path) -> dict[str, Any]:
    """The run's rows by table: graph timings where there are any, of the fastest kernel for each shape; BadFile if none fits a table."""
    frame = read_frame(path, ("gpu", "family", "kernel", "dtype", "mode", "latency_us"))
    out = {}
    for family, table in FAMILIES.items():
        part = frame[frame["family"] == family]
        if family in ARITHMETIC:
            part = part[part["dtype"].isin(ARITHMETIC[family])]
        if (part["mode"] == "graph").any():
            part = part[part["mode"] == "graph"]
        part = part.dropna(axis=1, how="all")
        for name, ordinary in PLAIN.items():
            if name in part:
                part = part[part[name].fillna(ordinary) == ordinary]
        if len(part):
            out[table] = _fastest(part.assign(**{k: part[k].fillna(v) if k in part else v for k, v in DEFAULTS.items()}))
    if not out:
        raise BadFile(f"{path}: holds no row of a kernel family that can be fitted; legal: {', '.join(FAMILIES)}")
    return out


def _fastest(part: Any) -> Any:
    """One row per shape: the fastest kernel's. Its label goes, so that one family covers them all."""
    timing = {
        "latency_us",
        "p10_us",
        "p90_us",
        "n_samples",
        "n_input_sets",
        "config",
        "clock_mhz",
        "kernel",
        "framework",
        "framework_version",
        "mode",
    }
    shape = [c for c in part.columns if c not in timing]
    best = part.sort_values("latency_us", kind="stable").drop_duplicates(shape)
    if part["family"].iloc[0] == "moe":
        best = best.assign(kernel="own_run")
    return best.astype({c: float for c in best.columns if str(best[c].dtype) == "Int64"})
