"""Reads published request traces: Azure, Vidur, BurstGPT; Mooncake and LLMServingSim logs; vLLM, guidellm and aiperf benchmark results.

The format is told by the header or the first record's keys. A wrong or truncated file is one sentence with the line and what is wrong.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..scenarios.errors import BadFile
from ..scenarios.serving import MAX_REQUESTS, ServeWorkload

MAX_TRACE_BYTES = 4 * 2**30
MAX_LINE_CHARS = 16 * 2**20
MAX_BENCHMARK_BYTES = 2**30
"""A JSON document is read whole; a table line by line."""
Row = tuple[float, int, int]
"""Arrival in seconds on any clock, prompt tokens, output tokens."""


def read_trace(path: Path) -> ServeWorkload:
    """A workload from a trace file; arrivals are sorted and start at 0. Raises BadFile with the line."""
    try:
        if not path.is_file():
            raise BadFile(f"{path}: not a file; give the path of a trace (.csv, .jsonl or .json)")
        if path.stat().st_size > MAX_TRACE_BYTES:
            raise BadFile(f"{path}: {path.stat().st_size:,} bytes is over the limit of {MAX_TRACE_BYTES:,} for a trace")
        if path.suffix == ".csv":
            return _workload(path, list(_csv_rows(path)))
        if path.suffix == ".jsonl":
            return _json_lines(path)
        if path.suffix == ".json":
            return _workload(path, _benchmark(path))
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: not UTF-8 text (byte {error.start})") from None
    except csv.Error as error:
        raise BadFile(f"{path}: not a CSV table: {error}") from None
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read: {error}") from None
    raise BadFile(f"{path}: {path.suffix or 'no'} extension is not a trace's; legal: .csv, .jsonl, .json")


def _workload(path: Path, rows: list[Row], blocks: list[list[int]] | None = None, block_tokens: int = 0) -> ServeWorkload:
    if not rows:
        raise BadFile(f"{path}: no requests in it")
    if len(rows) > MAX_REQUESTS:
        raise BadFile(f"{path}: {len(rows):,} requests is over the limit of {MAX_REQUESTS:,}")
    at, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    order = np.argsort(at, kind="stable")
    arrival = at[order].astype(np.float64)
    starts, ids = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if blocks is not None:
        starts = np.concatenate([[0], np.cumsum([len(blocks[i]) for i in order])]).astype(np.int64)
        ids = np.array([b for i in order for b in blocks[i]], np.int64)
    return ServeWorkload(
        arrival_s=arrival - arrival[0], prompt_tokens=prompt[order].astype(np.int64), output_tokens=output[order].astype(np.int64),
        block_starts=starts, block_ids=ids, block_id_tokens=block_tokens, source=path.name,
    )  # fmt: skip


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """Lines as they are read; BadFile for one so long that the file is no table of requests."""
    number = 0
    while line := file.readline(MAX_LINE_CHARS):
        number += 1
        if len(line) == MAX_LINE_CHARS:
            raise BadFile(f"{path}: line {number} is over the limit of {MAX_LINE_CHARS:,} characters; is this a trace?")
        yield line


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(_lines(file, path))
        header = next(lines, [])
        known = next((k for k in CSV_FORMATS if set(k) <= set(header)), None)
        if known is None:
            legal = "; ".join(",".join(k) for k in CSV_FORMATS)
            raise BadFile(f"{path}: line 1: columns {','.join(header)[:120]!r} are of no known trace; legal: {legal}")
        clock, *counts = known
        columns = [header.index(name) for name in known]
        for cells in lines:
            number = lines.line_num
            if not cells:
                continue
            if len(cells) < len(header):
                raise BadFile(f"{path}: line {number}: {len(cells)} of {len(header)} columns; the line is cut off")
            try:
                at = CSV_FORMATS[known](cells[columns[0]])
            except ValueError:
                raise BadFile(f"{path}: line {number}: {clock}={cells[columns[0]][:60]!r} is not a time") from None
            prompt, output = (_tokens(cells[c], f"{path}: line {number}: {name}") for c, name in zip(columns[1:], counts, strict=True))
            yield at, max(prompt, 1), max(output, 1)


def _clock(text: str) -> float:
    """Seconds of a wall time whose fraction may have more digits than Python reads."""
    whole, _, fraction = text.replace("+00:00", "").rstrip("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def _second(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


CSV_FORMATS: dict[tuple[str, str, str], Callable[[str], float]] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _clock,  # Azure 2023 and 2024
    ("arrived_at", "num_prefill_tokens", "num_decode_tokens"): _second,  # Vidur
    ("Timestamp", "Request tokens", "Response tokens"): _second,  # BurstGPT
    ("arrival_s", "prompt_tokens", "output_tokens"): _second,
}
"""Columns -> how the first of them reads as seconds."""


def _tokens(value: Any, where: str) -> int:
    """A token count; counts of 0 occur in public traces (a failed answer) and are kept as given."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise BadFile(f"{where}={str(value)[:60]!r} is not a number of tokens") from None
    if not 0 <= number <= 1e9 or number != int(number) or isinstance(value, bool):
        raise BadFile(f"{where}={str(value)[:60]} must be a whole number from 0 to 1e9")
    return int(number)


JSONL_FORMATS = {
    ("timestamp", "input_length", "output_length"): 1e-3,  # Mooncake, milliseconds
    ("arrival_time", "input_toks", "output_toks"): 1.0,  # logs of vLLM runs by LLMServingSim
    ("arrival_time_ns", "input_toks", "output_toks"): 1e-9,  # LLMServingSim workloads
}
MOONCAKE_BLOCK_TOKENS = 512


def _json_lines(path: Path) -> ServeWorkload:
    rows: list[Row] = []
    blocks: list[list[int]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            record = _object(line, where)
            if "metadata" in record and "metrics" in record:
                rows += _aiperf(record, where)
                continue
            keys = next((k for k in JSONL_FORMATS if set(k) <= set(record)), None)
            if keys is None:
                raise BadFile(
                    f"{where}: keys {', '.join(record)[:120]} are of no known trace; legal: "
                    f"{'; '.join(','.join(k) for k in JSONL_FORMATS)}; metadata,metrics"
                )
            at = _number(record[keys[0]], f"{where}: {keys[0]}") * JSONL_FORMATS[keys]
            prompt, output = (_tokens(record[k], f"{where}: {k}") for k in keys[1:])
            rows.append((at, max(prompt, 1), max(output, 1)))
            ids = record.get("hash_ids")
            if ids is not None:
                if not isinstance(ids, list) or not all(type(i) is int and -(2**63) <= i < 2**63 for i in ids):
                    raise BadFile(f"{where}: hash_ids must be a list of whole numbers of 64 bits")
                blocks.append(ids)
    if blocks and len(blocks) != len(rows):
        raise BadFile(f"{path}: {len(blocks)} of {len(rows)} requests have hash_ids; give all or none")
    return _workload(path, rows, blocks or None, MOONCAKE_BLOCK_TOKENS if blocks else 0)


def _aiperf(record: dict[str, Any], where: str) -> list[Row]:
    """The request of one line of aiperf's ``profile_export.jsonl``; none for a warm-up or a failed request.

    Source: aiperf documentation, per-request records.
    """
    metadata, metrics = record["metadata"], record["metrics"]
    if not isinstance(metadata, dict) or not isinstance(metrics, dict | None):
        raise BadFile(f"{where}: metadata and metrics must be JSON objects")
    if record.get("error") or not metrics or metadata.get("benchmark_phase") == "warmup":
        return []
    prompt, output = (
        _tokens(metrics[k].get("value") if isinstance(metrics.get(k), dict) else None, f"{where}: {k}")
        for k in ("input_sequence_length", "output_sequence_length")
    )
    return [(_number(metadata.get("request_start_ns"), f"{where}: request_start_ns") * 1e-9, max(prompt, 1), max(output, 1))]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where}: not JSON ({_reason(error)}); is the file cut off?") from None
    if not isinstance(record, dict):
        raise BadFile(f"{where}: not a JSON object")
    return record


def _reason(error: Exception) -> str:
    """Why a document was refused, in the words of its reader where they are short."""
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error).split(":")[0].split("(")[0].strip()


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise BadFile(f"{where}={str(value)[:60]} is not a finite number")
    return float(value)


def _benchmark(path: Path) -> list[Row]:
    """Requests of a benchmark result: vLLM's ``--save-detailed`` JSON, or guidellm's."""
    if path.stat().st_size > MAX_BENCHMARK_BYTES:
        raise BadFile(f"{path}: {path.stat().st_size:,} bytes is over the limit of {MAX_BENCHMARK_BYTES:,} for a benchmark result")
    record = _object(path.read_text(encoding="utf-8-sig"), str(path))
    if "input_lens" in record and "output_lens" in record:
        return _vllm_bench(path, record)
    if "benchmarks" in record:
        return _guidellm(path, record)
    raise BadFile(
        f"{path}: keys {', '.join(record)[:120]} are of no known benchmark; legal: vLLM (input_lens, output_lens), guidellm (benchmarks)"
    )


def _vllm_bench(path: Path, record: dict[str, Any]) -> list[Row]:
    prompts, outputs = record["input_lens"], record["output_lens"]
    if not (isinstance(prompts, list) and isinstance(outputs, list)):
        raise BadFile(f"{path}: input_lens and output_lens must be lists")
    starts = record.get("start_times") or [0.0] * len(prompts)
    if not (isinstance(starts, list) and len(prompts) == len(outputs) == len(starts)):
        raise BadFile(f"{path}: input_lens, output_lens and start_times must be lists of one length")
    return [
        (_number(s, f"{path}: start_times[{i}]"), _tokens(p, f"{path}: input_lens[{i}]"), _tokens(o, f"{path}: output_lens[{i}]"))
        for i, (s, p, o) in enumerate(zip(starts, prompts, outputs, strict=True))
        if o
    ]


def _guidellm(path: Path, record: dict[str, Any]) -> list[Row]:
    rows = []
    for b, bench in enumerate(_list(record["benchmarks"], f"{path}: benchmarks")):
        requests = bench.get("requests", {}) if isinstance(bench, dict) else {}
        found = requests.get("successful", []) if isinstance(requests, dict) else []
        for i, one in enumerate(_list(found, f"{path}: benchmarks[{b}].requests.successful")):
            where = f"{path}: benchmarks[{b}].requests.successful[{i}]"
            if not isinstance(one, dict) or "start_time" not in one:
                raise BadFile(f"{where}: has no start_time")
            prompt, output = (_tokens(one.get(k), f"{where}: {k}") for k in ("prompt_tokens", "output_tokens"))
            rows.append((_number(one["start_time"], f"{where}: start_time"), max(prompt, 1), max(output, 1)))
    return rows


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadFile(f"{where} must be a list")
    return value
