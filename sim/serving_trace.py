"""A window of a serving run for Perfetto: engine steps by replica, requests from arrival to last token, queue and KV as counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from .serve_result import ServeResult
from .step_log import StepLog
from .trace import MICROSECONDS, Span, chrome_trace

MAX_EVENTS = 1_000_000


def serving_trace(result: ServeResult, logs: Mapping[str, StepLog], window_s: tuple[float, float] | None = None) -> dict[str, Any]:
    """The Chrome trace of everything that overlaps ``window_s`` (the whole run where it is None).

    One lane a replica holds its steps; asynchronous tracks hold requests, first waiting (to the first token), then answering; counters
    follow waiting and decoding requests and free KV blocks. Raises BadInput for an empty window or over a million events.
    """
    low, high = window_s or (0.0, result.end_s)
    if not 0 <= low < high:
        raise BadInput(f"window={low:g}..{high:g} s must start at 0 or later and end after its start")
    lanes, spans, counters = list(logs), [], []
    for lane, log in enumerate(logs.values()):
        columns = log.columns()
        start, end = columns["start_ps"] / PS, columns["end_ps"] / PS
        for i in np.flatnonzero((end > low) & (start < high)).tolist():
            row = {name: int(values[i]) for name, values in columns.items() if not name.endswith("_ps")}
            prompt, n = row["prompt_tokens"], row["n_decoding"]
            kind = "prefill" if prompt and not n else "mixed" if prompt else "decode"
            name = f"{kind} {prompt} + {n}" if prompt else f"decode {n} x {row['n_steps']} steps"
            spans.append(Span(name=name, category=kind, lane=lane, start_s=float(start[i]), end_s=float(end[i]), args=row))
            counters.append(_counter(lanes[lane], float(start[i]), row))
        for at, request in zip(*(column.tolist() for column in log.preemptions().values()), strict=True):
            if low <= at / PS < high:
                counters.append(_preemption(lane, at / PS, request))
    requests = _requests(result, low, high)
    if len(spans) + len(requests) > MAX_EVENTS:
        raise BadInput(f"{len(spans) + len(requests):,} events are over the {MAX_EVENTS:,} a trace viewer opens; give a shorter window")
    trace = chrome_trace(lanes, spans, "serving")
    trace["traceEvents"] += counters + requests
    return trace


def _counter(replica: str, at_s: float, row: dict[str, int]) -> dict[str, Any]:
    levels = {name: row[name] for name in ("n_waiting", "n_decoding", "free_blocks")}
    return {"name": f"{replica} levels", "ph": "C", "pid": 0, "ts": at_s * MICROSECONDS, "args": levels}


def _preemption(lane: int, at_s: float, request: int) -> dict[str, Any]:
    return {"name": f"preempted {request}", "ph": "i", "s": "t", "pid": 0, "tid": lane, "ts": at_s * MICROSECONDS}


def _requests(result: ServeResult, low: float, high: float) -> list[dict[str, Any]]:
    """Nestable asynchronous events of the requests that are in the system inside the window."""
    work, events = result.work, []
    inside = (work.arrival_s < high) & (result.finish_s > low)
    for q in np.flatnonzero(inside).tolist():
        args = {"prompt_tokens": int(work.prompt_tokens[q]), "output_tokens": int(work.output_tokens[q])}
        arrival, first, finish = float(work.arrival_s[q]), float(result.first_s[q]), float(result.finish_s[q])
        for name, begin, end in (("to first token", arrival, first), ("answer", first, finish)):
            common = {"name": name, "cat": "request", "id": q, "pid": 1, "tid": 0}
            events.append(common | {"ph": "b", "ts": begin * MICROSECONDS, "args": args})
            events.append(common | {"ph": "e", "ts": end * MICROSECONDS, "args": {}})
    return events
