"""Reads a table of measured training runs: one checked record per line, or one sentence that names the line at fault."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..scenarios.errors import BadFile
from ..scenarios.load import read_text

MAX_FILE_BYTES = 256 * 2**20
MAX_ROWS = 1_000_000
MAX_VALUE = 1e15
"""Larger numbers are a slip of the pen: no count, size or time of a training run comes near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """One published run as its source states it; ``None`` or ``''`` = not stated. ``line`` is its line in the file.

    Units are those of the table: ``peak_mem_gb`` in the source's own gigabyte, ``tflops_per_gpu`` in its own FLOP convention.
    """

    line: int
    id: str
    source: str
    model: str
    layers: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    ffn: int | None
    vocab: int | None
    gated_mlp: int | None
    num_experts: int | None
    top_k: int | None
    moe_ffn: int | None
    shared_experts: int | None
    gpu: str
    num_gpus: int | None
    gpus_per_node: int | None
    interconnect: str
    tp: int | None
    pp: int | None
    vpp: int | None
    cp: int | None
    cp_kind: str
    ep: int | None
    dp: int | None
    sharding: str
    seq_parallel: int | None
    micro_batch: int | None
    global_batch_seqs: int | None
    seq_len: int | None
    precision: str
    recompute: str
    offload: str
    attention: str
    tflops_per_gpu: float | None
    tokens_per_s_per_gpu: float | None
    step_time_s: float | None
    peak_mem_gb: float | None
    notes: str


KINDS = {f.name: f.type for f in dataclasses.fields(TrainingRun) if f.name != "line"}
"""Column -> annotation. Columns of the file that are not named here are ignored."""


def read_runs(path: Path) -> list[TrainingRun]:
    """Every run of a CSV file with these columns (others are ignored).

    Raises BadFile: missing, empty, over 256 MiB, not UTF-8, columns missing, a line with too few or too many cells, a cell that is
    not the number its column wants, negative, not finite or over 1e15, or an id that appears twice.
    """
    text = read_text(path, MAX_FILE_BYTES)
    if "\0" in text:
        raise BadFile(f"{path}: line {text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL byte; it is not a text table")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lstrip("\ufeff") for name in next(reader, [])]
        _check_header(path, header)
        runs: list[TrainingRun] = []
        seen: dict[str, int] = {}
        for cells in reader:
            if not cells or cells == [""]:
                continue
            if len(runs) >= MAX_ROWS:
                raise BadFile(f"{path}: line {reader.line_num}: over the limit of {MAX_ROWS:,} rows")
            run = _run(path, reader.line_num, header, cells)
            if run.id in seen:
                raise BadFile(f"{path}: line {run.line}: id {run.id!r} was already used in line {seen[run.id]}")
            seen[run.id] = run.line
            runs.append(run)
    except csv.Error as error:
        raise BadFile(f"{path}: line {reader.line_num}: not a CSV line: {error}") from None
    if not runs:
        raise BadFile(f"{path}: a header but no rows")
    return runs


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise BadFile(f"{path}: empty; the first line must name the columns id, source, model, …")
    missing = [name for name in KINDS if name not in header]
    if missing:
        raise BadFile(f"{path}: line 1: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise BadFile(f"{path}: line 1: column {twice[0]!r} is given twice")


def _run(path: Path, line: int, header: list[str], cells: list[str]) -> TrainingRun:
    if len(cells) != len(header):
        more = "the line is cut short" if len(cells) < len(header) else "a cell with a comma needs quotes"
        raise BadFile(f"{path}: line {line}: {len(cells)} cells under {len(header)} columns; {more}")
    raw = dict(zip(header, cells, strict=True))
    values: dict[str, Any] = {name: _value(f"{path}: line {line}: {name}", kind, raw[name].strip()) for name, kind in KINDS.items()}
    for name in ("id", "source", "model"):
        if not values[name]:
            raise BadFile(f"{path}: line {line}: {name} is empty")
    return TrainingRun(line=line, **values)


def _value(where: str, kind: str | type[Any], cell: str) -> Any:
    if kind == "str":
        return cell
    if not cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        raise BadFile(f"{where}={cell[:40]!r} is not a number; leave the cell empty if the source does not say") from None
    if not math.isfinite(number):
        raise BadFile(f"{where}={cell!r} is not finite; leave the cell empty if the source does not say")
    if number < 0 or number > MAX_VALUE:
        raise BadFile(f"{where}={cell} must be between 0 and {MAX_VALUE:g}")
    if "int" not in typing.cast(str, kind):
        return number
    if number != int(number):
        raise BadFile(f"{where}={cell} must be a whole number")
    return int(number)
