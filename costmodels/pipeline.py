"""Closed forms of pipeline schedules: span, bubble, exposed messages, activations held; arrays hold one value per candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.plan import Ints, Schedule
from .arrays import Array, Reals, as_floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpan:
    """Seconds of all micro-batches of one step: ``span = busy + bubble + exposed p2p`` of the rank that computes most."""

    span_s: Array
    bubble_s: Array
    exposed_p2p_s: Array


def span(
    schedule: Schedule, pp: Ints, vpp: Ints, n_micro: Ints, fwd_s: Reals, bwd_input_s: Reals, bwd_weight_s: Reals,
    p2p_s: Reals = 0.0, overlapped_s: Reals | None = None,
) -> PipelineSpan:  # fmt: skip
    """Span of ``n_micro`` micro-batches over ``pp`` equal stages of ``vpp`` chunks each.

    ``fwd_s, bwd_input_s, bwd_weight_s`` (F, B, W) are one micro-batch on one whole stage; ``p2p_s`` (c) is one message, which
    delays its receiver while both ranks compute on; ``overlapped_s`` is a forward and a whole backward run together (dualpipe;
    F+B+W if not given). Bubbles:

    - gpipe, 1f1b ``(pp-1)(F+B+W)``; interleaved the same over ``vpp``; zb1p ``(pp-1) max(F+B-W, F, B)``
    - dualpipe, with ``k = pp/2-1`` and ``x = FB-W-min(B,W)``: ``max(k(x+F), k(x+B)-F)``

    For ``F = B`` and ``W <= F`` these are the published ``(pp-1)(F+B-W)`` and ``(pp/2-1)(FB+B-2W)``. Without messages all equal
    the replay of `sim.training` exactly (dualpipe: where ``FB >= max(F, B+W)``); messages are exact while ``c`` is under F/5 and, when
    interleaved, F/vpp (dualpipe: to within one), and a lower bound above that.
    Legality (``n_micro`` a multiple of ``pp`` when interleaved, ``pp`` even and ``n_micro >= 2 pp`` for dualpipe, at least
    ``pp`` for zb1p) is the planner's business.
    Source: Huang et al. 2019 (GPipe); Narayanan et al. 2021 section 2.2; Qi et al. 2024 section 2; DeepSeek-V3 report table 2,
    whose B is our B+W.
    """
    p, v, m, f, b, w, c = as_floats(pp, vpp, n_micro, fwd_s, bwd_input_s, bwd_weight_s, p2p_s)
    v = v if schedule == "interleaved" else np.ones_like(v)
    whole = f + b + w
    busy = m * whole
    if schedule == "dualpipe":
        together = whole if overlapped_s is None else as_floats(overlapped_s)[0]
        busy, bubble = _dualpipe(p, m, f, b, w, together)
    elif schedule == "zb1p":
        bubble = (p - 1) * np.maximum(f + b - w, np.maximum(f, b))
    else:
        bubble = (p - 1) * whole / v
    exposed = np.where(p > 1, _messages_in_line(schedule, p, v, m) * c, 0.0)
    total = busy + bubble + exposed
    return PipelineSpan(span_s=total, bubble_s=bubble + 0.0 * total, exposed_p2p_s=exposed + 0.0 * total)


def _dualpipe(p: Array, m: Array, f: Array, b: Array, w: Array, together: Array) -> tuple[Array, Array]:
    """Busy and idle seconds of the first rank, with ``1.5 pp - 1`` micro-batches unpaired; the middle rank is critical, with ``pp+1``."""
    gain = f + b + w - together
    k, x = p / 2 - 1, together - w - np.minimum(b, w)
    unpaired_middle = np.where(p > 1, p + 1, m)
    unpaired_first = np.where(p > 1, np.maximum(1.5 * p - 1, p + 1), m)
    idle_middle = np.where(p > 1, np.maximum(k * (x + f), k * (x + b) - f), 0.0)
    idle = idle_middle - (unpaired_first - unpaired_middle) * gain
    return m * together + unpaired_first * gain, np.maximum(idle, 0.0)


def _messages_in_line(schedule: Schedule, p: Array, v: Array, m: Array) -> Array:
    """Messages on the critical path: fill and drain, and under 1f1b and dualpipe ``(pp-1)/pp`` of a round trip per micro-batch."""
    there_and_back = 2 * (p - 1)
    if schedule == "gpipe":
        return there_and_back
    if schedule == "zb1p":
        return there_and_back + 2 * np.clip(m - 2, 0, p - 1)
    if schedule == "dualpipe":
        return m * (p - 1) / p + np.maximum(1.5 * p - 3, 1.0)
    loops, rest = np.divmod(m - 1, p)
    one_f_one_b = there_and_back + loops * there_and_back + 2 * np.maximum(rest - 1, 0)
    return np.where(v > 1, 2 * (p * v - 1), one_f_one_b)


def uneven_span(stage_s: Array, n_micro: Ints, vpp: Ints = 1) -> Array:
    """Span of stages that differ: the slowest sets the pace, the others only fill and drain.

    ``(n_micro - 1/vpp) max(t) + sum(t)/vpp`` with ``stage_s`` = t of shape (..., pp), forward and backward of one micro-batch.
    Exact for gpipe, and for 1f1b and interleaved when the last stage is the slowest; otherwise an upper bound (seen: 20 percent
    when only the first of 7 stages is slow and ``n_micro = pp``, since its early forwards then hide the wait).
    """
    m, v = as_floats(n_micro, vpp)
    out: Array = (m - 1 / v) * stage_s.max(axis=-1) + stage_s.sum(axis=-1) / v
    return out


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
    return np.minimum(np.where(p > 1, p + 1, 1.0) if schedule == "dualpipe" else p, m)


def param_copies(schedule: Schedule) -> int:
    """Copies of a stage's parameters on each rank: dualpipe keeps two, one for each direction. Source: DeepSeek-V3 report table 2."""
    return 2 if schedule == "dualpipe" else 1


def p2p_count(pp: Ints, vpp: Ints, n_micro: Ints) -> Array:
    """Stage-to-stage messages of one step, both directions: ``2 m (pp vpp - 1)``; 0 without a pipeline."""
    p, v, m = as_floats(pp, vpp, n_micro)
    return np.where(p > 1, 2 * m * (p * v - 1), 0.0)
