"""Fits an engine's few host constants on a hashed fifth of measured serving points; the other four fifths stay for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.serving import Floats64, ServingEngine, serving_engine
from .serving_points import ServePoint
from .serving_predict import predict
from .validate_serving import is_fit_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A constant to fit: the values tried, the step by which its effect is measured, and the engine that has it ('': all)."""

    field: str
    values: tuple[float, ...]
    step: float
    engine: str = ""


STEP_KNOBS = (
    Knob(field="step_cpu_s", values=tuple(2e-4 * i for i in range(41)), step=1e-3),
    Knob(field="sequence_cpu_s", values=(0.0, *(2e-6 * i for i in range(1, 41))), step=1e-5),
    Knob(field="quantised_sequence_s", values=(0.0, *(2e-6 * i for i in range(1, 41))), step=1e-5, engine="vllm"),
    Knob(field="ranks_cpu_s", values=tuple(2e-4 * i for i in range(41)), step=1e-3, engine="vllm-0.6"),
    Knob(field="per_head_elements", values=tuple(float(i) for i in range(4, 41)), step=1.0, engine="trtllm-0.11"),
    Knob(field="kernel_frac", values=tuple(0.8 + 0.02 * i for i in range(26)), step=0.1),
)
"""What moves TPOT and throughput."""
DOOR_KNOBS = (
    Knob(field="request_cpu_s", values=tuple(2e-3 * i for i in range(41)), step=5e-3),
    Knob(field="token_cpu_s", values=tuple(5e-7 * i for i in range(41)), step=2e-6),
    Knob(field="frontend_cpu_s", values=tuple(2.5e-4 * i for i in range(33)), step=1e-3),
    Knob(field="launch_s", values=tuple(2.5e-6 * i for i in range(2, 49)), step=1e-5),
)
"""What moves TTFT."""
MAX_ROWS = 48
ROUNDS = 4
SHARES = (1.0, 0.5, 0.2)
"""Parts of the way to the best proportional values that are tried in turn."""
CUT = 0.3
DOOR_CUT = 0.7
"""A row further off than this has another cause than host time (speculation, an unknown layout) and must not steer the fit."""
ONE_RUNTIME = {"trtllm-0.11": "trtllm-0.15", "trtllm-0.15": "trtllm-0.11"}
"""Profiles of one C++ runtime whose kernels differ: what is no constant of one of them alone is fitted on the rows of both."""
MEASURED_GPUS = ("a100-80gb-sxm", "h100-sxm", "gh200-96gb", "h200", "b200")
"""Cards with kernel measurements of their own, or the die of one: on others an engine constant would absorb the error of the transfer."""


def fit_engine(points: Sequence[ServePoint], name: str) -> tuple[ServingEngine, dict[str, float]]:
    """The engine's profile with its host constants and ``kernel_frac`` fitted, and how it went.

    First STEP_KNOBS on the mean |log(predicted/published)| of TPOT and throughput, cut at CUT; then DOOR_KNOBS on that of TTFT, cut at
    DOOR_CUT. The former uses dense models where there are FEW or more rows of them: the price of experts has errors of its own. Each
    round measures how the rows answer to a step of each knob, finds the best values if they answered in proportion, and keeps them if
    the simulated rows agree. Raises BadInput when no row fits.
    """
    names = (name, ONE_RUNTIME.get(name, name))
    rows = [p for p in points if p.plan.engine in names and is_fit_row(p) and p.gpu in MEASURED_GPUS and not p.split]
    step = max(1, len(rows) // MAX_ROWS)
    rows = [p for p in rows[::step] if _runs(p)]
    if not rows:
        raise BadInput(f"no measured point of engine {name} is in the fitting fifth")
    best = serving_engine(name)
    how: dict[str, float] = {}
    for label, knobs, doors in (("", STEP_KNOBS, False), ("_ttft", DOOR_KNOBS, True)):
        used = [p for p in rows if any(m.startswith("ttft") == doors for m in p.measured)]
        if used:
            best, before, after = _descend(used, best, [k for k in knobs if k.engine in ("", name)], doors)
            how |= {f"n_rows{label}": len(used), f"mean_log_error{label}_before": before, f"mean_log_error{label}": after}
    return best, how


def _descend(rows: Sequence[ServePoint], engine: ServingEngine, knobs: Sequence[Knob], doors: bool) -> tuple[ServingEngine, float, float]:
    cut = DOOR_CUT if doors else CUT
    wanted = np.array([v for p in rows for _, v in _wanted(p, doors)])
    best, found = engine, _answers(rows, engine, doors)
    before = score = _error(found, wanted, cut)
    for _ in range(ROUNDS):
        slopes = [(_answers(rows, replace(best, **{k.field: getattr(best, k.field) + k.step}), doors) - found) / k.step for k in knobs]
        values = _proportional(best, found, slopes, wanted, knobs, cut)
        for share in SHARES:
            candidate = replace(best, **{k: getattr(best, k) + share * (v - getattr(best, k)) for k, v in values.items()})
            answers = _answers(rows, candidate, doors)
            if _error(answers, wanted, cut) < score - 1e-4:
                break
        else:
            break
        best, found, score = candidate, answers, _error(answers, wanted, cut)
    return best, before, score


def _proportional(
    engine: ServingEngine, found: Floats64, slopes: Sequence[Floats64], wanted: Floats64, knobs: Sequence[Knob], cut: float
) -> dict[str, float]:
    """Coordinate descent over all knob values on ``found + Σ slope·change``."""
    at = {k.field: float(getattr(engine, k.field)) for k in knobs}
    start = dict(at)
    for _ in range(10):
        for knob, slope in zip(knobs, slopes, strict=True):
            others = found + sum(
                (s * (at[k.field] - start[k.field]) for k, s in zip(knobs, slopes, strict=True) if k is not knob), np.zeros_like(found)
            )
            tried = [at[knob.field], *knob.values]
            errors = [_error(others + slope * (v - start[knob.field]), wanted, cut) for v in tried]
            at[knob.field] = tried[int(np.argmin(errors))]
    return at


def _runs(point: ServePoint) -> bool:
    try:
        predict(point)
    except BadInput:
        return False
    return True


def _wanted(point: ServePoint, doors: bool) -> list[tuple[str, float]]:
    return [(m, v) for m, v in point.measured.items() if m.startswith("ttft") == doors]


def _answers(rows: Sequence[ServePoint], engine: ServingEngine, doors: bool) -> Floats64:
    """Each wanted metric of the rows as simulated; rows of the other profile of ONE_RUNTIME take the constants that are no one's own."""
    shared = {k.field: getattr(engine, k.field) for k in (*STEP_KNOBS, *DOOR_KNOBS) if not k.engine}
    other = ONE_RUNTIME.get(engine.name)
    under = {engine.name: engine} | ({other: replace(serving_engine(other), **shared)} if other else {})
    answers = [(point, predict(point, under[point.plan.engine])) for point in rows]
    return np.array([found[m] for point, found in answers for m, _ in _wanted(point, doors)])


def _error(found: Floats64, wanted: Floats64, cut: float) -> float:
    """Mean |log(found/wanted)|, each cut."""
    return float(np.mean(np.minimum(np.abs(np.log(np.maximum(found, 1e-12) / wanted)), cut)))
