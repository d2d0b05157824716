"""Scores the serving simulator on tables of measured points and on logs of real engine runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..scenarios import registry
from ..scenarios.errors import BadFile, BadInput
from ..scenarios.serving import EnginePlan, Floats64, ServeWorkload, serving_engine
from ..sim.serve_result import ServeResult
from ..sim.serving import simulate_serving
from ..sim.serving_metrics import latencies
from .serving_points import ServePoint, read_points
from .serving_predict import predict

FOLDS = 5
SPLIT_OFF = {"trtllm-0.11": "trtllm-0.15", "vllm-0.6-rocm": "vllm-0.6"}
"""Profiles made of part of another's rows: which rows are fitted on stays as it was."""
MAX_LOG_BYTES = 2**30
STATS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
REQUEST_KEYS = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")


def is_fit_row(point: ServePoint) -> bool:
    """Whether a point is in the fifth that engine constants are fitted on: by hash of what was run, so equal settings stay together."""
    p = point.plan
    engine = SPLIT_OFF.get(p.engine, p.engine)
    key = f"{point.model} {point.gpu} {engine} {p.tp} {p.pp} {p.dp} {p.ep} {p.weight_dtype} {point.isl} {point.osl} {point.concurrency}"
    return hashlib.sha256(key.encode()).digest()[0] % FOLDS == 0


def validate_serving(path: Path, watched: Callable[[Sequence[ServePoint]], Iterable[ServePoint]] = iter) -> dict[str, Any]:
    """Predict every usable point of a table: rows, what was skipped and why, errors by source and metric.

    ``error_frac = predicted/published − 1``. Rows that engine constants were fitted on say ``"fitted": true`` and are not in the summary.
    ``watched`` may wrap the points to show progress. Raises BadFile when the file is not a table of serving points.
    """
    points, skipped = read_points(path)
    rows = []
    for point in watched(points):
        try:
            found = predict(point)
        except BadInput as error:
            skipped.append({"id": point.id, "why": str(error)})
            continue
        rows += [
            {
                "id": point.id,
                "source": point.source,
                "metric": metric,
                "published": published,
                "predicted": found[metric],
                "error_frac": found[metric] / published - 1,
                "fitted": is_fit_row(point),
                "moe": registry.model(point.model).n_experts > 0,
                "disaggregated": point.split is not None,
            }
            for metric, published in point.measured.items()
            if metric in found and 0 < published < math.inf
        ]
    return {"rows": rows, "skipped": skipped, "summary": summarise(rows)}


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """``{source: {metric: {n, mape, median_ape, bias}}}`` of the rows not fitted on, and the same for all dense and all MoE rows.

    Disaggregated rows are a group of their own, and in none of these.
    """
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if not row["fitted"]:
            kinds = ("all disaggregated",) if row["disaggregated"] else ("all MoE" if row["moe"] else "all dense", "all")
            for group in (row["source"], *kinds):
                groups.setdefault(group, {}).setdefault(row["metric"], []).append(row["error_frac"])
    return {group: {metric: _errors(np.array(found)) for metric, found in sorted(by.items())} for group, by in sorted(groups.items())}


def _errors(found: Floats64) -> dict[str, float]:
    return {
        "n": len(found),
        "mape": float(np.mean(np.abs(found))),
        "median_ape": float(np.median(np.abs(found))),
        "bias": float(np.median(found)),
    }


def validate_serving_log(folder: Path) -> dict[str, Any]:
    """Replay the arrivals of a real engine run (``meta.json``, ``requests.jsonl``) and compare the latency distributions.

    Latencies count from when the engine queued a request. The KV pool is the engine's own where ``meta.json`` gives it. Raises BadFile
    when a file is missing or malformed, BadInput when the GPU or the model is not known.
    """
    meta, log = _meta(folder), _requests(folder / "requests.jsonl")
    order = np.argsort(log["queued_ts"], kind="stable")
    log = {key: values[order] for key, values in log.items()}
    work = ServeWorkload(
        arrival_s=log["queued_ts"] - log["queued_ts"][0],
        prompt_tokens=log["input_toks"].astype(np.int64),
        output_tokens=log["output_toks"].astype(np.int64),
    )
    result = _replay(meta, _gpu(folder, meta), work)
    many = work.output_tokens > 1
    measured = {
        "ttft_s": log["first_token_ts"] - log["queued_ts"],
        "tpot_s": (log["last_token_ts"] - log["first_token_ts"])[many] / (work.output_tokens[many] - 1),
        "e2e_s": log["last_token_ts"] - log["queued_ts"],
    }
    rows: list[dict[str, Any]] = []
    for metric, predicted in latencies(result).items():
        for stat in ("mean", *STATS):
            published, found = _stat(measured[metric], stat), _stat(predicted, stat)
            rows.append(
                {
                    "id": f"{metric} {stat}",
                    "source": folder.name,
                    "metric": metric,
                    "stat": stat,
                    "published": published,
                    "predicted": found,
                    "error_frac": found / published - 1,
                }
            )
    worst: dict[str, float] = {metric: max(abs(r["error_frac"]) for r in rows if r["metric"] == metric) for metric in measured}
    summary = {"n_requests": len(work), "preemptions": result.n_preempted, "kv_blocks": result.memory.kv_blocks, "worst_error_frac": worst}
    return {"rows": rows, "skipped": [], "summary": {folder.name: summary}}


def _stat(values: Floats64, stat: str) -> float:
    return float(values.mean()) if stat == "mean" else float(np.quantile(values, STATS[stat]))


def _replay(meta: dict[str, Any], gpu: str, work: ServeWorkload) -> ServeResult:
    """The run again: the engine's own limits, its default profile for the rest, no time before the queue.

    A log has no hashes of prompts, so requests share nothing; with prefix caching on, one that was preempted finds what is left of its own.
    """
    args, engine = meta["engine_kwargs"], replace(serving_engine("vllm"), request_cpu_s=0.0, token_cpu_s=0.0)
    cache = meta["kv_cache"] if isinstance(meta.get("kv_cache"), dict) else {}
    block = _count(cache, "block_size") or engine.block_tokens
    cached = bool(cache.get("enable_prefix_caching", args.get("enable_prefix_caching", True)))
    if cached:
        own = work.prompt_tokens // block
        work = replace(work, block_starts=np.concatenate([[0], np.cumsum(own)]), block_ids=np.arange(own.sum()), block_id_tokens=block)
    kv_dtype = args.get("kv_cache_dtype", "auto")
    plan = EnginePlan(
        tp=_count(args, "tensor_parallel_size") or 1,
        max_num_seqs=_count(args, "max_num_seqs"),
        token_budget=_count(args, "max_num_batched_tokens"),
        kv_blocks=_count(cache, "num_gpu_blocks"),
        block_tokens=block,
        prefix_cache=cached,
        kv_dtype="bf16" if kv_dtype == "auto" else str(kv_dtype),
    )
    cluster = registry.cluster(gpu, plan.n_gpus)
    return simulate_serving(registry.model(str(meta["model"])), cluster, plan, work, engine=engine)


def _count(settings: Any, key: str) -> int:
    """A setting of ``meta.json``, 0 where it is not given; BadFile unless it is a whole number."""
    value = settings.get(key) if isinstance(settings, dict) else None
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise BadFile(f"meta.json: {key}={str(value)[:40]} must be a whole number, 0 or more")
    return value


def _gpu(folder: Path, meta: dict[str, Any]) -> str:
    """The card: as the driver named it, else the part of the folder's name before the first underscore."""
    hardware = meta.get("hardware")
    named = (hardware.get("device_name") if isinstance(hardware, dict) else None) or folder.resolve().name.partition("_")[0]
    return registry.accelerator(str(named)).name


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    for needed in (path, folder / "requests.jsonl"):
        if not needed.is_file():
            raise BadFile(f"{folder}: no folder with meta.json and requests.jsonl; give the folder of an engine run")
        if needed.stat().st_size > MAX_LOG_BYTES:
            raise BadFile(f"{needed}: {needed.stat().st_size:,} bytes is over the limit of {MAX_LOG_BYTES:,} for the log of a run")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path}: cannot be read as JSON: {str(error)[:120]}") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("engine_kwargs"), dict) or "model" not in meta:
        raise BadFile(f"{path}: lacks model or engine_kwargs; give the folder of an engine run")
    return meta


def _requests(path: Path) -> dict[str, Floats64]:
    """Columns of the request log; BadFile names the line that is cut off or lacks a key."""
    columns: dict[str, list[float]] = {key: [] for key in REQUEST_KEYS}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            for key in REQUEST_KEYS:
                columns[key].append(float(record[key]))
            _check_request([columns[key][-1] for key in REQUEST_KEYS])
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise BadFile(f"{path}: line {number}: not a finished request ({str(error)[:60]}); is the file cut off?") from None
    if not columns["queued_ts"]:
        raise BadFile(f"{path}: no requests in it")
    return {key: np.array(values) for key, values in columns.items()}


def _check_request(values: Sequence[float]) -> None:
    """ValueError unless both counts are at least 1 and the times are finite and in order."""
    prompt, output, queued, first, last = values
    if not (1 <= prompt < 1e9 and 1 <= output < 1e9):
        raise ValueError("token counts must be from 1 to 1e9")
    if not -math.inf < queued < first <= last < math.inf:
        raise ValueError("times must be finite and in order")
