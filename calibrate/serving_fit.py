"""Fits an engine's few host constants on a hashed fifth of measured serving points; the other four fifths stay for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.serving import ServingEngine, serving_engine
from .serving_points import ServePoint
from .serving_predict import predict
from .validate_serving import is_fit_row

STEP_CPU_S = (0.0, 0.0003, 0.0006, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008)
SEQUENCE_CPU_S = (0.0, 1e-6, 5e-6, 1e-5, 1.5e-5, 2e-5, 3e-5, 4e-5, 6e-5)
KERNEL_FRAC = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3)
MAX_ROWS = 60
MAX_TP = 2
"""Rows of wider replicas would let the price of messages steer the host constants."""
CUT = 0.3
"""A row further off than this has another cause than host time (speculation, an unknown layout) and must not steer the fit."""
MEASURED_GPUS = ("a100-80gb-sxm", "h100-sxm", "h200", "b200")
"""Cards with kernel measurements of their own: on others an engine constant would absorb the error of the transfer."""


def fit_engine(points: Sequence[ServePoint], name: str) -> tuple[ServingEngine, dict[str, float]]:
    """The engine's profile with ``step_cpu_s``, ``sequence_cpu_s``, ``kernel_frac``, ``request_cpu_s`` fitted, and how it went.

    The first three by coordinate descent on the mean |log(predicted/published)|, cut at CUT, of TPOT and throughput;
    ``request_cpu_s`` is the 25th percentile of published less predicted TTFT (queueing only adds) at up to 16 clients
    with prompts up to 1,024 tokens, where little else counts; at least 0. Raises BadInput when no row fits.
    """
    rows = [p for p in points if p.plan.engine == name and is_fit_row(p) and p.gpu in MEASURED_GPUS and p.plan.tp <= MAX_TP]
    step = max(1, len(rows) // MAX_ROWS)
    rows = [p for p in rows[::step] if _runs(p)]
    if not rows:
        raise BadInput(f"no measured point of engine {name} is in the fitting fifth")
    best = replace(serving_engine(name), request_cpu_s=0.0)
    before = score = _error(rows, best)
    grid = {"step_cpu_s": STEP_CPU_S, "sequence_cpu_s": SEQUENCE_CPU_S, "kernel_frac": KERNEL_FRAC}
    for _ in range(2):
        for field, values in grid.items():
            for value in values:
                candidate = replace(best, **{field: value})  # type: ignore[arg-type]
                found = _error(rows, candidate)
                if found < score - 1e-6:
                    best, score = candidate, found
    bench = [p for p in rows if "ttft_s" in p.measured and p.lengths_low_frac < 1 and p.concurrency <= 16 and p.isl <= 1024]
    waits = [p.measured["ttft_s"] - predict(p, best)["ttft_s"] for p in bench]
    if waits:
        best = replace(best, request_cpu_s=max(0.0, float(np.quantile(waits, 0.25))))
    return best, {"n_rows": len(rows), "mean_log_error_before": before, "mean_log_error": score}


def _runs(point: ServePoint) -> bool:
    try:
        predict(point)
    except BadInput:
        return False
    return True


def _error(rows: Sequence[ServePoint], engine: ServingEngine) -> float:
    errors = []
    for point in rows:
        found = predict(point, engine)
        errors += [min(CUT, abs(np.log(found[m] / v))) for m, v in point.measured.items() if m in found and not m.startswith("ttft")]
    return float(np.mean(errors)) if errors else 0.0
