"""Bubbles of a pipeline: closed forms of even steps, a hand-drawn uneven schedule, and what a case must give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.calibrate.case_pipeline import pipeline_s, stream_steps_s
from roofplan.calibrate.cases import predict
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.reference import select


@given(n=st.integers(1, 6), steps=st.integers(1, 30), took=st.floats(0.1, 2.0))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_even_steps_of_as_many_streams_as_stages_leave_no_idle_time(n: int, steps: int, took: float) -> None:
    """``n`` streams of ``k`` steps fill ``n`` stages: ``(n·k + n − 1)`` stage times, no stage idle between its first and last work."""
    end, idle = pipeline_s([np.full(steps, took)] * n, n)
    assert end == pytest.approx((n * steps + n - 1) * took / n)
    assert idle == pytest.approx(0, abs=1e-9)


def test_uneven_steps_by_hand() -> None:
    """Two stages; steps of 2 and 4 s: stage times 1 and 2. The short one waits for the long one on the second stage."""
    end, idle = pipeline_s([np.array([2.0, 2.0]), np.array([4.0, 4.0])], 2)
    # stage 0: a 0-1, b 1-3, a 3-4 (ready at 2, but in order), b 5-7 (left stage 1 at 5); stage 1: a 1-2, b 3-5, a 5-6, b 7-9
    assert end == pytest.approx(9)
    assert idle == pytest.approx((7 - 0 - 6) + (9 - 1 - 6))


@given(streams=st.lists(st.lists(st.floats(0.01, 3.0), min_size=1, max_size=12), min_size=1, max_size=5), n=st.integers(1, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_pipeline_beats_its_work(streams: list[list[float]], n: int) -> None:
    arrays = [np.array(s) for s in streams]
    end, idle = pipeline_s(arrays, n)
    total = sum(s.sum() for s in arrays)
    assert end >= max(total / n, max(s.sum() for s in arrays)) - 1e-9
    assert idle >= -1e-9


def test_streams_hold_every_step() -> None:
    case = select(("sarathi-bubbles",))[0]
    assert case.serving is not None
    load = dataclasses.replace(case.serving.load, n_requests=16)
    steps = stream_steps_s(dataclasses.replace(case.serving, load=load), 4)
    assert len(steps) == 4
    assert all(len(s) > 200 and np.all(s > 0) for s in steps)


def test_both_sides_are_needed() -> None:
    case = select(("sarathi-bubbles",))[0]
    with pytest.raises(BadInput, match=r"needs a \[serving\] and a \[serving_baseline\]"):
        predict(dataclasses.replace(case, serving_baseline=None))
