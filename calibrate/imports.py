"""Reads public measurement tables, in the layout of the AIConfigurator package or already merged, and writes them for fit and check."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..scenarios.errors import BadFile, BadInput
from ..scenarios.store import make_folder, write_files
from .layer_profiles import is_profile, profile_tables
from .rows import TABLES, load_tables
from .tables import pandas, read_frame
from .tuned_tables import tuned_files, tuned_tables

Say = Callable[[str], None]

PACKAGE = "aiconfigurator_core"
LAYOUT = {
    "gemm_perf": "aic_gemm",
    "context_attention_perf": "aic_attention_context",
    "generation_attention_perf": "aic_attention_generation",
    "context_mla_perf": "aic_mla_context",
    "generation_mla_perf": "aic_mla_generation",
    "moe_perf": "aic_moe",
    "moe_a2a_perf": "aic_moe_alltoall",
    "nccl_perf": "aic_nccl",
    "custom_allreduce_perf": "aic_custom_allreduce",
}
"""File stem in the package -> our table."""

RENAMED = {
    "gemm_dtype": "dtype", "attn_dtype": "dtype", "moe_dtype": "dtype", "nccl_dtype": "dtype", "allreduce_dtype": "dtype", "isl": "seq_len",
    "num_key_value_heads": "num_kv_heads", "moe_tp_size": "tp_size", "moe_ep_size": "ep_size", "distribution": "routing", "op_name": "op",
    "framework_name": "framework", "version": "framework_version", "kernel_source": "kernel",
    "comm_backend": "backend",
}  # fmt: skip
"""Column of the package -> ours; columns already named as ours stay."""


def import_tables(source: Path | None, out: Path, framework: str = "vllm", say: Say = lambda _: None, origin: str = "") -> dict[str, int]:
    """Write one Parquet table per kind to ``out``; returns rows per table.

    ``source`` is a folder of tables as ``fit`` reads them, a package's ``systems/data`` folder (``<gpu>/<kind>/<framework>/<version>/``),
    layer profiles of a vLLM engine (``<gpu>/<model>/<variant>/tp<N>/``), tables of tuned kernels (``*tuned_gemm*.csv``), or None for the
    installed package. ``origin`` says whose measurements they are, for the calibration's provenance. BadInput if nothing is installed,
    BadFile if nothing readable is found.
    """
    folder = source or installed()
    if not folder.is_dir():
        raise BadFile(f"{folder}: no such folder of measurement tables")
    if any((folder / f"{name}.{ending}").exists() for name in TABLES for ending in ("parquet", "csv")):
        frames = load_tables(folder)
    elif source is not None and is_profile(folder):
        frames = profile_tables(folder, say)
    elif source is not None and tuned_files(folder):
        frames = tuned_tables(folder, say)
    else:
        frames = _package_tables(folder, framework, say)
    make_folder(out, "--out")
    files = {}
    for name, frame in frames.items():
        if origin:
            frame["origin"] = origin
        buffer = io.BytesIO()
        frame.to_parquet(buffer, compression="zstd")
        files[out / f"{name}.parquet"] = buffer.getvalue()
    write_files(files, "--out")
    return {name: len(frame) for name, frame in frames.items()}


def installed() -> Path:
    """The data folder of the installed package; BadInput with the cure if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise BadInput(f"{PACKAGE} is not installed; name a folder of tables, or install it with: pip install aiconfigurator-core")
    return Path(next(iter(found.submodule_search_locations))) / "systems" / "data"


def _package_tables(folder: Path, framework: str, say: Say) -> dict[str, Any]:
    pd = pandas()
    parts: dict[str, list[Any]] = {}
    for (gpu, stem), path in _newest(folder, framework).items():
        say(str(path.relative_to(folder)))
        parts.setdefault(LAYOUT[stem], []).append(_read(pd, path, gpu, LAYOUT[stem]))
    if not parts:
        raise BadFile(f"{folder}: holds no <gpu>/<kind>/<framework>/<version>/{'.parquet, '.join(list(LAYOUT)[:2])}.parquet")
    return {table: pd.concat(frames, ignore_index=True) for table, frames in parts.items()}


def _newest(folder: Path, framework: str) -> dict[tuple[str, str], Path]:
    """GPU and file stem -> the table of the preferred framework (else of PREFERENCE) in its newest version."""
    order = list(dict.fromkeys((framework, *PREFERENCE)))
    best: dict[tuple[str, str], tuple[int, list[int], Path]] = {}
    for path in sorted(folder.glob("*/*/*/*/*")):
        gpu, _, own, version, _ = path.relative_to(folder).parts
        if path.stem not in LAYOUT or path.suffix not in (".parquet", ".csv") or own not in order:
            continue
        rank = (-order.index(own), [int(n) for n in re.findall(r"[0-9]+", version)], path)
        key = (gpu, path.stem)
        if key not in best or rank[:2] > best[key][:2]:
            best[key] = rank
    return {key: path for key, (_, _, path) in best.items()}


def _read(pd: Any, path: Path, gpu: str, table: str) -> Any:
    """One file of the package with our columns: times in microseconds, the GPU from its folder, cached length as ``isl + step``."""
    frame = read_frame(path, ("latency",))
    frame["latency_us"] = frame["latency"] * (1.0 if "transmit_us" in frame else 1e3)
    if table.endswith("generation"):
        frame["kv_len"] = frame["isl"] + frame["step"]
    elif "step" in frame:
        frame = frame[frame["step"] == 0]
    if "message_size" in frame:  # recorded in elements
        kind = frame["nccl_dtype" if "nccl_dtype" in frame else "allreduce_dtype"]
        frame["message_bytes"] = frame["message_size"] * kind.map(ELEMENT_BYTES).fillna(2)
    frame = frame.rename(columns={k: v for k, v in RENAMED.items() if k in frame and v not in frame})
    if table == "aic_custom_allreduce":
        frame = frame.rename(columns={"backend": "mode"})
    frame["gpu"] = gpu
    for name in set(ABSENT) - set(frame.columns):
        frame[name] = ABSENT[name]
    missing = [c for c in TABLES[table] if c not in frame]
    if missing:
        raise BadFile(f"{path}: lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns[:14]))}")
    return frame[list(dict.fromkeys([*[c for c in EXTRA if c in frame], "gpu", "latency_us", *TABLES[table]]))]


PREFERENCE = ("vllm", "nccl", "sglang", "trtllm")
"""Frameworks in order, where the one asked for has no table."""

ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "int8": 1, "float": 4}

ABSENT = {"window_size": 0, "routing": "balanced"}
"""Values of columns that older tables lack."""

EXTRA = ("device", "framework", "framework_version", "kernel")
"""Columns kept for provenance where they exist."""
