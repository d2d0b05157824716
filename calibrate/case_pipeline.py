"""Predictors of bubbles in pipelined serving: micro-batches of uneven length in a pipeline of equal stages."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from ..scenarios.reference import Case
from ..scenarios.serving import Floats64
from ..scenarios.serving_case import Serving
from .case_serving import run_side


def pipeline_bubble_cut(case: Case) -> float:
    """Idle share of the stages' time under the baseline, per request, over the same under the case's policy."""
    (_, base), (_, ours) = _sides(case)
    return base / ours


def pipeline_gain(case: Case) -> float:
    """Time to serve all requests in the pipeline under the baseline over the same under the case's policy."""
    (base, _), (ours, _) = _sides(case)
    return base / ours


def _sides(case: Case) -> list[tuple[float, float]]:
    if case.serving is None or case.serving_baseline is None:
        raise BadInput(f"case {case.name}: predictor {case.predictor} needs a [serving] and a [serving_baseline]")
    n = int(case.numbers["stages"])
    return [pipeline_s(stream_steps_s(side, n), n) for side in (case.serving_baseline, case.serving)]


def stream_steps_s(side: Serving, n_streams: int) -> list[Floats64]:
    """Seconds of every step, through all layers, of ``n_streams`` engines that share the requests in turn: one micro-batch each."""
    side = dataclasses.replace(side, n_gpus=side.n_gpus * n_streams, deployment=dataclasses.replace(side.deployment, n_replicas=n_streams))
    steps = []
    for log in run_side(side, log=True).logs.values():
        rows = log.columns()
        took = (rows["end_ps"] - rows["start_ps"]) / np.maximum(rows["n_steps"], 1) / PS
        steps.append(np.repeat(took, rows["n_steps"]))
    return steps


def pipeline_s(streams: list[Floats64], n_stages: int) -> tuple[float, float]:
    """(seconds until all streams' steps have passed, seconds that stages idle between their first and last work, summed).

    A step takes ``1/n_stages`` of its seconds on each stage. Streams take turns; a stream's next step enters when its last has left, and a
    stage takes steps in order.
    """
    free, busy, first, left = [0.0] * n_stages, 0.0, [-1.0] * n_stages, [0.0] * len(streams)
    for at in range(max(len(s) for s in streams)):
        for i, stream in enumerate(streams):
            if at >= len(stream):
                continue
            took, ready = float(stream[at]) / n_stages, left[i]
            for stage in range(n_stages):
                begin = max(ready, free[stage])
                if first[stage] < 0:
                    first[stage] = begin
                free[stage] = ready = begin + took
            left[i] = ready
            busy += took * n_stages
    return max(free), sum(free) - sum(first) - busy
