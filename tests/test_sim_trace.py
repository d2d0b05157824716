"""Chrome traces: valid events, nothing lost, written whole or not at all."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from roofplan.scenarios.errors import BadInput
from roofplan.sim.schedule import NONE, order
from roofplan.sim.trace import Span, chrome_trace, training_spans, write_trace, write_training_trace
from roofplan.sim.training import StageTimes, replay

PLAY = replay(order("dualpipe", 4, 1, 8), StageTimes(fwd_s=1e-3, bwd_input_s=1e-3, bwd_weight_s=1e-3, p2p_s=1e-5))


def test_every_op_becomes_one_event_in_microseconds(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    write_training_trace(PLAY, path)
    trace = json.loads(path.read_text())
    assert trace["displayTimeUnit"] == "ms"
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(bars) == PLAY.order.n_ops == int((PLAY.order.kind != NONE).sum())
    for event in bars:
        assert {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"} <= set(event)
        assert event["ts"] >= 0
        assert event["dur"] > 0
    assert max(event["ts"] + event["dur"] for event in bars) == pytest.approx(PLAY.pipeline_s * 1e6)
    assert sum(event["dur"] for event in bars) == pytest.approx(PLAY.busy_s.sum() * 1e6)
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"]
    assert names == ["rank 0", "rank 1", "rank 2", "rank 3"]


def test_bars_of_a_lane_do_not_overlap() -> None:
    for lane in range(PLAY.order.pp):
        bars = [span for span in training_spans(PLAY) if span.lane == lane]
        assert all(later.start_s >= earlier.end_s - 1e-12 for earlier, later in pairwise(bars))


def test_bars_name_kind_and_micro_batches() -> None:
    bars = list(training_spans(PLAY))
    assert bars[0].name == "F0"
    pair = next(bar for bar in bars if bar.category == "FB")
    assert pair.name == f"FB{pair.args['micro_batch'][0]}+{pair.args['micro_batch'][1]}"
    assert len(pair.args["piece"]) == 2


def test_any_timeline_can_be_traced() -> None:
    trace = chrome_trace(["a", "b"], [Span(name="x", category="k", lane=1, start_s=0.5, end_s=0.75, args={"n": 3})], "mine")
    assert trace["traceEvents"][-1] == {"name": "x", "cat": "k", "ph": "X", "pid": 0, "tid": 1, "ts": 5e5, "dur": 2.5e5, "args": {"n": 3}}
    assert trace["traceEvents"][0]["args"] == {"name": "mine"}


def test_a_trace_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--perfetto .*cannot be written: there is no folder"):
        write_training_trace(PLAY, tmp_path / "missing" / "step.json")
    path = tmp_path / "step.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_trace(path, {"traceEvents": [float("nan")]})
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["step.json"]


def test_equal_replays_give_equal_files(tmp_path: Path) -> None:
    again = replay(PLAY.order, StageTimes(fwd_s=1e-3, bwd_input_s=1e-3, bwd_weight_s=1e-3, p2p_s=1e-5))
    write_training_trace(PLAY, tmp_path / "a")
    write_training_trace(again, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(PLAY.end_s, again.end_s, equal_nan=True)
