"""Turns measurement tables into families of one GPU, each bound to the formulas that price it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..costmodels.moe_curve import SKEWS
from ..scenarios import registry
from ..scenarios.calibration import FamilyFit, borrowed
from ..scenarios.errors import BadFile, BadInput, UnknownName
from ..scenarios.hardware import Accelerator, Link
from . import curves, message_curves
from .curves import Bound
from .curves_mixed import mixed_attention, uneven_attention
from .foreign import FOREIGN, NOT_KERNELS
from .own_runs import is_run, tables_of
from .tables import DTYPES, Columns, columns_of, pandas, read_frame
from .trend_fit import is_fraction

COMMON = ("gpu", "latency_us")
ROWS_PER_COEFFICIENT = 2
"""Rows a family needs for each coefficient of its trend; with fewer it is borrowed."""

TABLES: dict[str, tuple[str, ...]] = {
    "aic_gemm": ("dtype", "m", "n", "k"),
    "aic_attention_context": ("kv_cache_dtype", "batch_size", "seq_len", "num_heads", "num_kv_heads", "head_dim", "window_size"),
    "aic_attention_generation": ("kv_cache_dtype", "batch_size", "kv_len", "num_heads", "num_kv_heads", "head_dim", "window_size"),
    "attention_mixed": (
        "kv_cache_dtype",
        "seq_len",
        "prefix_len",
        "batch_size",
        "kv_len",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "alone_us",
    ),
    "attention_uneven": ("kv_cache_dtype", "seq_len", "batch_size", "n_long", "kv_len", "longest", "head_dim", "even_us"),
    "aic_mla_context": ("kv_cache_dtype", "batch_size", "seq_len", "num_heads"),
    "aic_mla_generation": ("kv_cache_dtype", "batch_size", "kv_len", "num_heads"),
    "aic_moe": ("dtype", "kernel", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "tp_size", "ep_size", "routing"),
    "aic_moe_alltoall": ("backend", "phase", "ep_size", "num_tokens", "hidden_size", "topk", "num_experts"),
    "aic_nccl": ("op", "dtype", "num_gpus", "message_bytes"),
    "aic_custom_allreduce": ("mode", "num_gpus", "message_bytes"),
    "device_copy": ("num_bytes",),
    "layer_pass": ("num_bytes",),
    "vidur_mlp": ("num_tokens", "hidden"),
    "vidur_network": ("collective", "num_workers", "devices_per_node", "bytes"),
}
"""Table -> the columns it must have beside the common ones."""

VIDUR = {"vidur_mlp": ("device", "add_us"), "vidur_network": ("network", "median_us")}
"""Table -> its names for the GPU and the time."""

STREAM_L2_SIZES = 8
"""Element-wise rows tell the speed of memory only when they move this many times the L2 cache."""


def load_tables(folder: Path, foreign: bool = False) -> dict[str, Any]:
    """Every known measurement table in a folder, and what ``calibrate run`` wrote there, as DataFrames by name.

    ``foreign`` adds the tables that are only checked. BadFile if the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise BadFile(f"{folder}: no such folder of measurement tables")
    found = {}
    known = {n: (VIDUR.get(n, COMMON), columns) for n, columns in TABLES.items()}
    if foreign:
        known |= {n: ((gpu, time), columns) for n, (gpu, time, columns) in FOREIGN.items()}
    for name, (own, columns) in known.items():
        paths = [p for p in (folder / f"{name}.parquet", folder / f"{name}.csv") if p.exists()]
        if paths:
            frame = read_frame(paths[0], (*own, *columns)).rename(columns=dict(zip(own, COMMON, strict=True)))
            found[name] = _clean(frame, paths[0], columns)
    for path in sorted(folder.glob("*.parquet")):
        if path.stem not in TABLES and is_run(path):
            for name, frame in tables_of(path).items():
                own = _clean(frame, path, TABLES[name])
                found[name] = pandas().concat([found[name], own], ignore_index=True) if name in found else own
    if not found and not (foreign and other_tables(folder)):
        raise BadFile(
            f"{folder}: holds none of the measurement tables {', '.join(TABLES)} (.parquet or .csv), nor a table of calibrate run"
        )
    return found


def _clean(frame: Any, path: Path, columns: tuple[str, ...]) -> Any:
    """The frame without rows that no fit can use, refusing columns of the wrong kind."""
    for name in ("latency_us", *columns):
        if name in TEXT:
            frame[name] = frame[name].astype(str)
        elif name != "latency_us" or frame[name].dtype.kind not in "iuf":
            frame[name] = _sizes(frame[name], path)
    good = np.isfinite(frame["latency_us"]) & (frame["latency_us"] > 0)
    if not good.any():
        raise BadFile(f"{path}: no row has a positive latency_us")
    return frame[good]


def _sizes(column: Any, path: Path) -> Any:
    """A column of sizes as numbers; BadFile names the first row that is none. Tables of other tools leave cells empty or 0."""
    if not len(column):
        raise BadFile(f"{path}: has no rows")
    numbers = pandas().to_numeric(column, errors="coerce")
    if path.stem in FOREIGN:
        bad, what = numbers.isna() & ~column.isna(), "a number"
    else:
        most = 1e15 if "bytes" in column.name else 1e12
        bad, what = ~((numbers >= 0 if column.name in ZERO else numbers > 0) & (numbers < most)), f"a number above 0 and below {most:.0e}"
    if bad.any():
        at = int(np.argmax(bad))
        raise BadFile(f"{path}: row {at + 1}: {column.name}={str(column.iloc[at])[:40]!r} must be {what}")
    return numbers


ZERO = frozenset({"window_size", "prefix_len"})
"""Columns of sizes in which 0 says that there is none."""
TEXT = frozenset({"gpu", "model", "collective", "dtype", "kv_cache_dtype", "kernel", "routing", "backend", "phase", "op", "mode"})


def other_tables(folder: Path) -> dict[Path, tuple[str, str]]:
    """Files of a folder that hold whole requests, not kernels -> their column that names the GPU, and why they are left alone."""
    paths = (folder / f"{name}.{ending}" for name in NOT_KERNELS for ending in ("parquet", "csv"))
    return {path: NOT_KERNELS[path.stem] for path in paths if path.exists()}


def gpu_name(spelling: str) -> str:
    """The accelerator a table means; UnknownName if the registry knows none."""
    return registry.accelerator(spelling.removesuffix("_dgx")).name


def gpus_of(tables: dict[str, Any]) -> dict[str, list[str]]:
    """Accelerator name -> its spellings in the tables; spellings no registry knows are left out."""
    out: dict[str, list[str]] = {}
    for spelling in sorted({str(g) for frame in tables.values() for g in frame["gpu"].unique()}):
        try:
            out.setdefault(gpu_name(spelling), []).append(spelling)
        except UnknownName:
            continue
    return out


def families(tables: dict[str, Any], gpu: Accelerator, spellings: list[str]) -> Iterator[Bound]:
    """Every family measured on one GPU, bound to its formulas; a card that has a kin starts from what the kin lends it and stays near."""
    link = registry.link(registry.cluster(gpu.name, 1).intra)
    lent = borrowed(gpu)
    for name, frame in tables.items():
        own = frame[frame["gpu"].isin(spellings)]
        for key, part in split(name, own, gpu):
            bound = bind(key, part, gpu, link, name) if len(part) else None
            if bound is not None and enough(bound):
                yield near(bound, lent.families.get(key)) if lent is not None else bound


PULL = 0.2
"""Hold on a coefficient that a kin lends: an e-fold of change costs as much as two rows that are 10 % off."""


def near(bound: Bound, fit: FamilyFit | None) -> Bound:
    """The family held near its kin's coefficients (where the kin has it), which those that few shapes do not tell keep."""
    known = fit.coefficients if fit is not None else {}
    start = {name: min(known.get(name, value), 0.99 if is_fraction(name) else np.inf) for name, value in bound.start.items()}
    return replace(bound, start=start, pull=PULL)


def enough(bound: Bound) -> bool:
    """Whether a family has rows enough to be fitted rather than borrowed."""
    return len(bound.seconds) >= ROWS_PER_COEFFICIENT * len(bound.start)


def split(table: str, frame: Any, gpu: Accelerator) -> Iterator[tuple[str, Any]]:
    """Family key -> its rows of one table."""
    if table == "aic_gemm":
        for dtype, part in frame.groupby("dtype"):
            yield f"gemm.{DTYPES.get(dtype, dtype)}", part
    elif table == "attention_mixed":
        frame = beside_prompts(frame)
        for (dim, kv), part in frame.groupby(["head_dim", "kv_cache_dtype"]):
            yield f"attention.mixed.hd{dim}" + (".fp8" if kv == "fp8" else ""), part
    elif table == "attention_uneven":
        frame = few_long(frame)
        for (dim, kv), part in frame.groupby(["head_dim", "kv_cache_dtype"]):
            yield f"attention.uneven.hd{dim}" + (".fp8" if kv == "fp8" else ""), part
    elif table.startswith("aic_attention"):
        phase = "prefill" if table.endswith("context") else "decode"
        for (dim, window, kv), part in frame.groupby(["head_dim", "window_size", "kv_cache_dtype"]):
            yield f"attention.{phase}.hd{dim}" + (f".w{window}" if window else "") + (".fp8" if kv == "fp8" else ""), part
    elif table.startswith("aic_mla"):
        phase = "prefill" if table.endswith("context") else "decode"
        for kv, part in frame.groupby("kv_cache_dtype"):
            yield f"mla.{phase}" + (".fp8" if kv == "fp8" else ""), part
    elif table == "aic_moe":
        for (dtype, kernel), part in frame[frame["routing"].isin(SKEWS)].groupby(["dtype", "kernel"]):
            yield f"moe.{DTYPES.get(dtype, dtype)}.{kernel_name(kernel)}", part
    elif table == "aic_moe_alltoall":
        for (backend, phase), part in frame.groupby(["backend", "phase"]):
            yield f"moe_alltoall.{backend}.{phase}", part
    elif table == "aic_nccl":
        for op, part in frame.groupby("op"):
            if op == "all_reduce":  # only its arithmetic depends on the format
                yield "collective.all_reduce.int8", part[part["dtype"] == "int8"]
                part = part[part["dtype"] != "int8"]
            yield f"collective.{op.replace('alltoall', 'all_to_all')}", part
    elif table == "aic_custom_allreduce":
        for mode, part in frame.groupby("mode"):
            yield f"custom_allreduce.{mode.removeprefix('vllm_')}", part
    elif table in ("vidur_mlp", "device_copy"):
        yield "stream", frame[stream_bytes(frame) > STREAM_L2_SIZES * gpu.l2_bytes]
    elif table == "layer_pass":
        yield "pass", frame
    elif table == "vidur_network":
        yield "collective.p2p", frame[(frame["collective"] == "send_recv") & (frame["devices_per_node"] == frame["num_workers"])]


LEAST_SHARE = 0.25
"""Decodes beside a prompt say what they cost when they add at least this share to the time of the prompt alone."""


def beside_prompts(frame: Any) -> Any:
    """What decodes add to a fresh prompt in one attention call: ``latency − alone + empty``, the last an empty call (least time alone)."""
    fresh = frame[(frame["prefix_len"] == 0) & (frame["latency_us"] > (1 + LEAST_SHARE) * frame["alone_us"])]
    empty = fresh.groupby(["num_heads", "num_kv_heads"])["alone_us"].transform("min")
    return fresh.assign(latency_us=fresh["latency_us"] - fresh["alone_us"] + empty)


FEW = 8
"""Of so many decodes one may be long where the longest alone decides when a call ends."""


def few_long(frame: Any) -> Any:
    """Calls in which at most one decode in FEW is longer than the others."""
    return frame[FEW * frame["n_long"] <= frame["batch_size"]]


def stream_bytes(rows: Any) -> Any:
    """Bytes an element-wise row moves: a copy reads and writes ``num_bytes``; a residual addition reads two bf16 tensors, writes one."""
    return 2.0 * rows["num_bytes"] if "num_bytes" in rows else 6.0 * rows["num_tokens"] * rows["hidden"]


def kernel_name(label: str) -> str:
    """A short name of a MoE backend label: its last words, without the framework's prefix."""
    tail = label.removeprefix("vllm_").split("moe_", 1)[-1]
    return tail.replace("flashinfer_", "").replace("experts", "").replace(".", "_").strip("_") or "default"


def bind(key: str, frame: Any, gpu: Accelerator, link: Link, source: str) -> Bound:
    """One family's rows bound to its formulas by the first word of its key; BadInput for a key of no known kind."""
    rows: Columns = columns_of(frame)
    rows["seconds"] = rows["latency_us"] * 1e-6
    kind, _, rest = key.partition(".")
    if kind == "gemm":
        return curves.gemm(key, rest, rows, gpu, source)
    if key.startswith("attention.mixed"):
        return mixed_attention(key, rows, gpu, source)
    if key.startswith("attention.uneven"):
        return uneven_attention(key, rows, source)
    if kind in ("attention", "mla"):
        rows["tokens"] = rows["seq_len"] if "seq_len" in rows else rows["kv_len"]
        return curves.attention(key, rest.split(".")[0], rows, gpu, source, latent=kind == "mla")
    if kind == "moe":
        rows["skew"] = np.array([float(SKEWS[r]) for r in rows["routing"]])
        return curves.moe(key, rest.split(".")[0], rows, gpu, source)
    if kind == "moe_alltoall":
        return message_curves.dispatch(key, rows, link, source)
    if kind == "stream":
        return curves.stream(key, stream_bytes(rows), rows["seconds"], gpu, source)
    if kind == "pass":
        return curves.layer_pass(key, rows["num_bytes"], rows["seconds"], gpu, source)
    if key == "collective.p2p":
        rows["message_bytes"], rows["num_gpus"] = rows["bytes"], rows["num_workers"]
    if kind == "collective":
        return message_curves.collective(key, rest.split(".")[0], rows, link, source)
    if kind == "custom_allreduce":
        return message_curves.custom_all_reduce(key, rows, gpu, link, source)
    raise BadInput(
        f"family {key!r} is of no known kind; legal: gemm, attention, mla, moe, moe_alltoall, collective, custom_allreduce, stream, pass"
    )
