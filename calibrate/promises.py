"""Which requests of a run kept a streaming promise: the first token in time, and a moving average of the gaps between the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from ..scenarios.serving import Floats64
from ..sim.serve_result import ServeResult

EMA_SPAN = 16
"""Tokens of the moving average. Source: DeepSpeedExamples, benchmarks/inference/mii, plot_effective_throughput (span 16, adjusted)."""


def token_times_s(out: ServeResult) -> Floats64:
    """When a replica's steps gave every decoding request a token; the rows of a stretch of steps are spread evenly.

    BadInput unless the run has one replica and kept its log.
    """
    if len(out.logs) != 1:
        raise BadInput(f"{len(out.logs)} step logs; token times need one replica and its log")
    rows = next(iter(out.logs.values())).columns()
    decoded = rows["tokens"] > rows["prompt_tokens"]
    start, end, n = (rows[name][decoded] for name in ("start_ps", "end_ps", "n_steps"))
    row = np.repeat(np.arange(len(n)), n)
    within = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n) + 1
    return np.asarray(start[row] + (end - start)[row] * within / n[row], np.float64) / PS


def worst_average_gap_s(gaps: Floats64) -> float:
    """Largest value of the adjusted exponential average of the gaps, ``Σ (1−a)^i g_(t−i) / Σ (1−a)^i``, ``a = 2/(EMA_SPAN + 1)``."""
    keep, total, weight, worst = 1 - 2 / (EMA_SPAN + 1), 0.0, 0.0, 0.0
    for gap in gaps.tolist():
        total, weight = total * keep + gap, weight * keep + 1
        worst = max(worst, total / weight)
    return worst


def kept(out: ServeResult, prompt_tokens_per_s: float, tokens_per_s: float) -> NDArray[np.bool_]:
    """Requests whose first token came within ``prompt/prompt_tokens_per_s`` and whose average gap never exceeded ``1/tokens_per_s``."""
    at = token_times_s(out)
    found = out.first_s - out.work.arrival_s <= out.work.prompt_tokens / prompt_tokens_per_s
    for q in np.flatnonzero(found):
        mine = at[np.searchsorted(at, out.first_s[q] + 1e-9, "right") : np.searchsorted(at, out.finish_s[q] + 1e-9, "right")]
        gaps = np.diff(np.concatenate([out.first_s[q : q + 1], mine]))
        found[q] = worst_average_gap_s(gaps) < 1 / tokens_per_s
    return found
