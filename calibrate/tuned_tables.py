"""Reads tables of tuned kernels with their times (``*tuned_gemm*.csv``, ``*tuned_fmoe*.csv`` of ROCm/aiter) as measurement tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..costmodels.gemm_curve import gemm_floor_s
from ..costmodels.moe_curve import moe_floor_s, moe_work
from ..scenarios import registry
from ..scenarios.errors import BadFile
from .tables import DTYPES, pandas, read_frame

Say = Callable[[str], None]

CARDS = {304: "mi300x"}
"""Compute units -> the card. An MI325X has as many, on faster memory: its rows cannot be told from an MI300X's."""
GEMM = ("cu_num", "M", "N", "K", "us")
MOE = ("cu_num", "token", "model_dim", "inter_dim", "expert", "topk", "q_dtype_w", "q_type", "us")
"""Columns of a table of products, and of one of experts."""
FLOAT8 = "torch.float8"
FRAMEWORK = {"framework": "aiter", "framework_version": "tuned"}


def tuned_files(folder: Path) -> list[Path]:
    """Tables of tuned products and experts under a folder; lists of shapes yet to be tuned, and batched products, are not."""
    found = {*folder.rglob("*tuned_gemm*.csv"), *folder.rglob("*tuned_fmoe*.csv")}
    return sorted(p for p in found if "untuned" not in p.name)


def tuned_tables(folder: Path, say: Say = lambda _: None) -> dict[str, Any]:
    """Products and experts of known cards and formats, each row once; BadFile for a malformed table or where nothing is left.

    Rows of other cards and formats are left out. So are rows below the physical floor of their card: caches served them.
    """
    parts: dict[str, list[Any]] = {}
    for path in tuned_files(folder):
        moe = "fmoe" in path.name
        frame = _read(path, MOE if moe else GEMM)
        frame = frame[frame["cu_num"].isin(CARDS)]
        frame = _experts(frame) if moe else _products(frame, path)
        real = frame["latency_us"].to_numpy() * 1e-6 >= _floors_s(frame, moe)
        if not real.all():
            say(f"{path.name}: {np.sum(~real)} rows left out: faster than peak or memory allow")
        if real.any():
            parts.setdefault("aic_moe" if moe else "aic_gemm", []).append(frame[real])
            say(f"{path.name}: {real.sum()} rows")
    if not parts:
        raise BadFile(f"{folder}: no tuned row of a known card and format; known compute units: {', '.join(map(str, CARDS))}")
    pd = pandas()
    return {table: pd.concat(frames, ignore_index=True).drop_duplicates(ignore_index=True) for table, frames in parts.items()}


def _read(path: Path, columns: tuple[str, ...]) -> Any:
    """One table; BadFile names the first row whose sizes or time are no positive numbers. A time of 0 or inf says: no kernel ran."""
    frame = read_frame(path, columns)
    for name in columns:
        if name.startswith("q_"):
            continue
        values = pandas().to_numeric(frame[name], errors="coerce")
        bad = values.isna() | ((values < 0) if name == "us" else ~((values > 0) & (values < 1e12)))
        if bad.any():
            at = int(np.argmax(bad))
            raise BadFile(f"{path}: row {at + 1}: {name}={str(frame[name].iloc[at])[:40]!r} must be a positive number")
        frame[name] = values
    return frame[(frame["us"] > 0) & np.isfinite(frame["us"])]


def _products(frame: Any, path: Path) -> Any:
    """Columns of a product. The weights' format is in the table's name (block scales) or in a column (8 bits, 16 bits)."""
    if "blockscale" in path.name and "a8w8" in path.name:
        dtype = np.full(len(frame), "fp8_block")
    elif "q_dtype_w" in frame:
        dtype = np.where(frame["q_dtype_w"].astype(str).str.startswith(FLOAT8), "fp8", "")
    elif "dtype" in frame:
        dtype = np.where(frame["dtype"].astype(str) == "torch.bfloat16", "bfloat16", "")
    else:
        dtype = np.full(len(frame), "")
    out = frame[["M", "N", "K", "us"]].rename(columns={"M": "m", "N": "n", "K": "k", "us": "latency_us"})
    out = out.assign(dtype=dtype, gpu=frame["cu_num"].map(CARDS), kernel="tuned", **FRAMEWORK)
    return out[out["dtype"] != ""]


def _experts(frame: Any) -> Any:
    """Columns of a layer of experts on one rank, pairs dealt out evenly."""
    width, scales = frame["q_dtype_w"].astype(str), frame["q_type"].astype(str)
    eight = width.str.startswith(FLOAT8)
    dtype = np.where(width == "torch.bfloat16", "bfloat16", np.where(eight & scales.str.contains("1x128"), "fp8_block", ""))
    names = {"token": "num_tokens", "model_dim": "hidden_size", "inter_dim": "inter_size", "expert": "num_experts", "us": "latency_us"}
    out = frame[[*names, "topk"]].rename(columns=names)
    out = out.assign(dtype=dtype, gpu=frame["cu_num"].map(CARDS), kernel="fused_moe", tp_size=1, ep_size=1, routing="balanced", **FRAMEWORK)
    return out[out["dtype"] != ""]


def _floors_s(frame: Any, moe: bool) -> Any:
    """Seconds no kernel can beat, by row; products take activations already in their format, so the floor counts weights and results."""
    floors = np.zeros(len(frame))
    for (card, dtype), rows in frame.groupby(["gpu", "dtype"]).indices.items():
        gpu, kind, part = registry.accelerator(card), DTYPES.get(dtype, dtype), frame.iloc[rows]
        if moe:
            names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
            tokens, hidden, inter, topk, experts = (part[n].to_numpy(float) for n in names)
            work = moe_work(tokens, hidden, inter, topk, experts, 1, 1, 0)
            floors[rows] = moe_floor_s(work, kind, gpu)
        else:
            m, n, k = (part[c].to_numpy(float) for c in "mnk")
            spare = m * k * (2.0 if kind.startswith("fp8") else 0.0) / gpu.hbm_bytes_per_s
            floors[rows] = np.maximum(gemm_floor_s(m, n, k, kind, gpu) - spare, 2 * m * n * k / gpu.peak_flops_per_s(kind))
    return floors
