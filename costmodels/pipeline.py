"""Closed forms of pipeline schedules: span, bubble, exposed messages, activations held; arrays hold one value per candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.plan import Ints, Schedule
from .arrays import Array, Reals, as_floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpan:
    """Seconds of all micro-batches of one step: ``span = busy + bubble + exposed p2p`` of the slowest stage."""

    span_s: Array
    bubble_s: Array
    exposed_p2p_s: Array


def span(
    schedule: Schedule, pp: Ints, vpp: Ints, n_micro: Ints, fwd_s: Reals, bwd_input_s: Reals, bwd_weight_s: Reals,
    p2p_s: Reals = 0.0, overlapped_s: Reals | None = None,
) -> PipelineSpan:  # fmt: skip
    """Span of ``n_micro`` micro-batches over ``pp`` equal stages of ``vpp`` chunks each.

    ``fwd_s, bwd_input_s, bwd_weight_s`` (F, B, W) are one micro-batch on one whole stage, ``p2p_s`` (c) one message between
    stages that overlaps with compute but delays its receiver. ``overlapped_s`` is a forward and a backward run together
    (DualPipe; F+B+W if not given). With ``m = n_micro`` and bubbles

    - gpipe, 1f1b: ``(pp-1)(F+B+W)``; interleaved: the same over ``vpp``
    - zb1p: ``(pp-1)(F+B-W)``; dualpipe: ``(pp/2-1)(FB+B-2W)``, at least 0

    Legality (``m`` a multiple of ``pp`` when interleaved, ``pp`` even and ``m >= 2 pp`` for dualpipe) is the planner's business.
    Source: Huang et al. 2019 (GPipe); Narayanan et al. 2021 section 2.2; Qi et al. 2024 section 2.2; DeepSeek-V3 report table 2,
    whose B is our B+W.
    """
    p, v, m, f, b, w, c = as_floats(pp, vpp, n_micro, fwd_s, bwd_input_s, bwd_weight_s, p2p_s)
    v = v if schedule == "interleaved" else np.ones_like(v)
    whole = f + b + w
    busy = m * whole
    if schedule in ("gpipe", "1f1b", "interleaved"):
        bubble = (p - 1) * whole / v
    elif schedule == "zb1p":
        bubble = (p - 1) * np.maximum(f + b - w, 0.0)
    else:
        together = whole if overlapped_s is None else as_floats(overlapped_s)[0]
        alone = np.minimum(m, np.maximum(1.5 * p - 1, 0.0))
        busy = np.where(p > 1, alone * whole + (m - alone) * together, m * whole)
        bubble = np.maximum(p / 2 - 1, 0.0) * np.maximum(together + b - 2 * w, 0.0)
    exposed = _hops(schedule, p, v, m) * np.where(p > 1, c, 0.0)
    return PipelineSpan(span_s=busy + bubble + exposed, bubble_s=bubble + 0.0 * busy, exposed_p2p_s=exposed + 0.0 * busy)


def _hops(schedule: Schedule, p: Array, v: Array, m: Array) -> Array:
    """Messages on the critical path."""
    if schedule == "gpipe":
        return 2 * (p - 1)
    loops, rest = np.divmod(m - 1, p)
    return 2 * (p - 1) + 2 * (loops * (p - 1) + np.maximum(rest - 1, 0))


def in_flight(schedule: Schedule, pp: Ints, vpp: Ints, n_micro: Ints) -> Array:
    """Micro-batches whose activations the worst stage holds at its peak, in units of one micro-batch on one whole stage.

    gpipe ``m``; 1f1b and zb1p ``min(pp, m)``; interleaved ``min(pp + (pp-1)/vpp, m)``; dualpipe ``min(pp+1, m)``.
    Source: Korthikanti et al. 2022 section 4.2.3; Qi et al. 2024 table 1; DeepSeek-V3 report table 2.
    """
    p, v, m = as_floats(pp, vpp, n_micro)
    if schedule == "gpipe":
        return m + 0.0 * p
    if schedule == "interleaved":
        return np.minimum(np.where(v > 1, p + (p - 1) / v, p), m)
    return np.minimum(p + 1 if schedule == "dualpipe" else p, m)
