"""A serving run as tidy tables: one row a request, one row a span of engine steps, and both summed over bins of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from .serve_result import ServeResult
from .step_log import StepLog

Columns = dict[str, NDArray[Any]]


def request_columns(result: ServeResult) -> Columns:
    """One row a request: id, arrival, first and last token (s from the start), lengths, TTFT, TPOT, E2E; NaN where it was rejected."""
    work = result.work
    steps = np.maximum(work.output_tokens - 1, 1)
    return {
        "request": np.arange(len(work)),
        "arrival_s": work.arrival_s,
        "first_token_s": result.first_s,
        "finish_s": result.finish_s,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "ttft_s": result.first_s - work.arrival_s,
        "tpot_s": np.where(work.output_tokens > 1, (result.finish_s - result.first_s) / steps, np.nan),
        "e2e_s": result.finish_s - work.arrival_s,
    }


def step_columns(logs: Mapping[str, StepLog]) -> Columns:
    """One row a span of equal steps, with the replica it ran on, in order of replica and time."""
    if not logs:
        raise BadInput("the run kept no log of its steps; simulate it with log=True")
    parts = {name: log.columns() for name, log in logs.items()}
    names = np.repeat(np.array(list(parts)), [len(c["start_ps"]) for c in parts.values()])
    joined = {key: np.concatenate([c[key] for c in parts.values()]) for key in next(iter(parts.values()))}
    out: Columns = {"replica": names, "start_s": joined.pop("start_ps") / PS, "end_s": joined.pop("end_ps") / PS}
    return out | joined


def over_time(result: ServeResult, n_bins: int = 200) -> Columns:
    """The run in ``n_bins`` equal bins: requests arriving and finishing a second, requests in the system (at the bin's end).

    Raises BadInput unless there is at least one bin.
    """
    if n_bins < 1:
        raise BadInput(f"n_bins={n_bins} must be at least 1")
    edges = np.linspace(0.0, max(result.end_s, 1e-9), n_bins + 1)
    served = np.isfinite(result.finish_s)
    came = np.histogram(result.work.arrival_s[served], edges)[0]
    left = np.histogram(np.minimum(result.finish_s[served], edges[-1]), edges)[0]
    width = edges[1] - edges[0]
    return {
        "time_s": (edges[:-1] + edges[1:]) / 2,
        "arrivals_per_s": came / width,
        "finished_per_s": left / width,
        "n_in_system": np.cumsum(came - left),
    }


def levels_over_time(logs: Mapping[str, StepLog], n_points: int = 400) -> Columns:
    """Waiting and running requests and used KV blocks of all replicas together at ``n_points`` equally spaced times."""
    if not logs:
        raise BadInput("the run kept no log of its steps; simulate it with log=True")
    parts = [log.columns() for log in logs.values()]
    end = max(float(c["end_ps"][-1]) for c in parts if len(c["end_ps"]))
    at = np.linspace(0.0, end, n_points)
    out: Columns = {"time_s": at / PS}
    for key in ("n_waiting", "n_decoding", "free_blocks"):
        out[key] = np.sum([_held(c, key, at) for c in parts], axis=0)
    return out


def _held(columns: Columns, key: str, at: NDArray[np.float64]) -> NDArray[np.int64]:
    """The value of a column in force at each time: that of the last span begun; before the first, the first's."""
    i = np.searchsorted(columns["start_ps"], at, side="right") - 1
    held: NDArray[np.int64] = columns[key][np.clip(i, 0, None)]
    return held


def frame(columns: Columns) -> Any:
    """The columns as a pandas DataFrame; BadInput with the cure where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise BadInput("tables as DataFrames need pandas; install it with: pip install 'roofplan[report]'") from None
    return pandas.DataFrame(columns)


def csv_text(columns: Columns) -> str:
    """The columns as CSV, NaN left empty; numbers as Python prints them, so equal runs give equal files."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join("" if v != v else str(v) for v in row) for row in rows)]
    return "\n".join(lines) + "\n"
