"""Writes timelines as Chrome trace JSON, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..scenarios.store import write_files
from .schedule import KIND_NAMES, NONE
from .training import Replay

MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One bar of a timeline: ``lane`` is the index of its row, ``category`` what it is coloured by."""

    name: str
    category: str
    lane: int
    start_s: float
    end_s: float
    args: dict[str, Any] = field(default_factory=dict)


def training_spans(replay: Replay) -> Iterator[Span]:
    """The bars of a replayed training step: one per op, named by kind and micro-batch, in order of rank and time."""
    plan = replay.order
    for rank, i in zip(*(index.tolist() for index in np.nonzero(plan.kind != NONE)), strict=True):
        kind = KIND_NAMES[plan.kind[rank, i]]
        cells = [int(cell) for cell in (plan.f_cell[rank, i], plan.b_cell[rank, i]) if cell != NONE]
        micro = [cell % plan.n_micro for cell in cells]
        yield Span(
            name=kind + "+".join(map(str, micro)), category=kind, lane=rank,
            start_s=float(replay.start_s[rank, i]), end_s=float(replay.end_s[rank, i]),
            args={"micro_batch": micro, "piece": [cell // plan.n_micro for cell in cells]},
        )  # fmt: skip


def chrome_trace(lanes: Sequence[str], spans: Iterable[Span], process: str = "roofplan") -> dict[str, Any]:
    """The trace as a JSON-ready dict: complete events ("ph": "X") in microseconds, one thread a lane.

    Source: Trace Event Format, Google, 2016.
    """
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": process}}]
    for lane, name in enumerate(lanes):
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": lane, "args": {"name": name}})
    for span in spans:
        events.append({
            "name": span.name, "cat": span.category, "ph": "X", "pid": 0, "tid": span.lane, "ts": span.start_s * MICROSECONDS,
            "dur": (span.end_s - span.start_s) * MICROSECONDS, "args": span.args,
        })  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(path: Path, trace: dict[str, Any]) -> None:
    """Write a trace whole or not at all; BadInput if the folder cannot be written."""
    write_files({path: json.dumps(trace, allow_nan=False).encode()}, "--perfetto")


def write_training_trace(replay: Replay, path: Path) -> None:
    """Write the timeline of a replayed training step, one row per pipeline rank."""
    write_trace(path, chrome_trace([f"rank {rank}" for rank in range(replay.order.pp)], training_spans(replay), "training step"))
