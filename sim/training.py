"""Replays one training step: every rank's ops in order, each as soon as its rank is free and its message has arrived."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..costmodels.arrays import Array, Reals, as_floats
from ..scenarios.errors import BadInput
from .schedule import BW, FB, NONE, B, Cells, F, Order, W


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds of one micro-batch on one whole stage; a number, or one value per rank. ``fused_s`` is a forward and a backward run
    together (0: their sum). ``reduce_s`` is a rank's gradient reduction; the part ``reduce_overlap_frac`` of it may run beside the
    rank's last backward."""

    fwd_s: Reals
    bwd_input_s: Reals
    bwd_weight_s: Reals
    p2p_s: float = 0.0
    fused_s: Reals = 0.0
    reduce_s: Reals = 0.0
    reduce_overlap_frac: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What happened: ``start_s`` and ``end_s`` of the ops of ``order`` (NaN past the end of a shorter list), and its measures.

    ``span_s`` runs from the first op to the end of the last op or gradient reduction; ``bubble_s`` is the slowest rank's idle time
    before its last op; ``bubble_frac`` is the idle share of all ranks over the pipeline's span. ``peak_in_flight`` counts, per rank,
    micro-batches whose activations it holds, in units of one whole stage.
    """

    order: Order
    start_s: Array
    end_s: Array
    span_s: float
    pipeline_s: float
    busy_s: Array
    bubble_s: float
    bubble_frac: float
    peak_in_flight: Array


def replay(plan: Order, times: StageTimes, *, slow: Reals = 1.0, jitter_frac: float = 0.0, seed: int = 0) -> Replay:
    """Play an order of ops.

    ``slow`` multiplies the times of each rank; ``jitter_frac`` is the standard deviation of a lognormal factor on each op, drawn from
    ``seed``. An op starts at ``max(end of the rank's previous op, end of its input + p2p)``. BadInput if a time is negative or not
    finite, or if the order waits for itself.
    """
    lasts = _durations(plan, times, slow)
    if jitter_frac > 0:
        noise = np.random.default_rng(seed).standard_normal(lasts.shape)
        lasts = lasts * np.exp(jitter_frac * noise - 0.5 * jitter_frac**2)
    start, end = _run(plan, lasts, times.p2p_s if plan.pp > 1 else 0.0)
    busy = lasts.sum(axis=1)
    done = np.nanmax(end, axis=1)
    reduce_s = np.broadcast_to(as_floats(times.reduce_s)[0], (plan.pp,))
    hidden = np.minimum(times.reduce_overlap_frac * reduce_s, np.nanmax(np.where(np.isin(plan.kind, (B, BW, FB, W)), lasts, 0.0), axis=1))
    pipeline = float(done.max())
    return Replay(
        order=plan, start_s=start, end_s=end, span_s=float((done + reduce_s - hidden).max()), pipeline_s=pipeline, busy_s=busy,
        bubble_s=float(pipeline - busy.max()), bubble_frac=float(1 - busy.sum() / (plan.pp * pipeline)) if pipeline > 0 else 0.0,
        peak_in_flight=peak_in_flight(plan),
    )  # fmt: skip


def peak_in_flight(plan: Order) -> Array:
    """Per rank, the most micro-batches whose activations are held at once; a forward adds ``1/vpp``, the weight gradient frees it."""
    takes = np.isin(plan.kind, (F, FB)).astype(np.float64)
    frees = np.isin(plan.kind, (W, BW, FB)).astype(np.float64)
    before = np.cumsum(takes - frees, axis=1) - (takes - frees)
    out: Array = (before + takes).max(axis=1) / plan.vpp
    return out


def _durations(plan: Order, times: StageTimes, slow: Reals) -> Array:
    """Seconds of each op, shape of ``plan.kind``."""
    given = as_floats(times.fwd_s, times.bwd_input_s, times.bwd_weight_s, times.fused_s, slow)
    f, b, w, fused, factor = (np.broadcast_to(x, (plan.pp,)) for x in given)
    table = np.zeros((plan.pp, 6))  # one column a kind; the last one is NONE
    table[:, F], table[:, B], table[:, W], table[:, BW] = f, b, w, b + w
    table[:, FB] = np.where(fused > 0, fused, f + b + w)
    table *= factor[:, None] / plan.vpp
    checked = np.append(table.ravel(), times.p2p_s)
    if not np.all(np.isfinite(checked)) or checked.min() < 0:
        raise BadInput(f"stage times must be finite and not negative; got {times}")
    out: Array = np.take_along_axis(table, plan.kind % 6, axis=1)
    return out


def _run(plan: Order, lasts: Array, p2p_s: float) -> tuple[Array, Array]:
    """Start and end of every op: in each round all ranks whose next op has its inputs run it.

    Two cells beyond the last stand for 'needs nothing' (time 0) and 'not yet there' (infinity) so that ranks advance as arrays.
    """
    nothing = plan.n_cells
    n_ops = plan.kind.shape[1]
    f_need, b_need = _needs(plan, nothing)
    f_end, b_end = np.full(nothing + 1, np.inf), np.full(nothing + 1, np.inf)
    f_end[nothing] = b_end[nothing] = -p2p_s
    start, end = np.full(plan.kind.shape, np.nan), np.full(plan.kind.shape, np.nan)
    at, free = np.zeros(plan.pp, dtype=np.int64), np.zeros(plan.pp)
    active = np.flatnonzero((plan.kind != NONE).any(axis=1))
    while len(active):
        i = at[active]
        ready = np.maximum(f_end[f_need[active, i]], b_end[b_need[active, i]]) + p2p_s
        go = np.isfinite(ready)
        if not go.any():
            raise BadInput(f"the {plan.schedule} order for pp={plan.pp}, vpp={plan.vpp}, n_micro={plan.n_micro} waits for itself")
        ranks, i = active[go], i[go]
        begin = np.maximum(free[ranks], ready[go])
        finish = begin + lasts[ranks, i]
        start[ranks, i], end[ranks, i], free[ranks] = begin, finish, finish
        f_end[plan.f_cell[ranks, i]] = finish
        b_end[plan.b_cell[ranks, i]] = np.where(plan.kind[ranks, i] == W, b_end[plan.b_cell[ranks, i]], finish)
        f_end[nothing] = b_end[nothing] = -p2p_s
        at[ranks] += 1
        still = at[active] < n_ops
        still[still] = plan.kind[active[still], at[active[still]]] != NONE
        active = active[still]
    return start, end


def _needs(plan: Order, nothing: int) -> tuple[Cells, Cells]:
    """The forward cell and the backward cell each op waits for; ``nothing`` where it waits for none.

    A forward waits for the piece before it, a backward for the piece after it. The last piece's backward waits for its own forward,
    which its rank has already run.
    """
    m, way = plan.n_micro, plan.pieces_per_way
    f_need = np.where((plan.f_cell == NONE) | (plan.f_cell // m % way == 0), nothing, plan.f_cell - m)
    b_need = np.where((plan.b_cell == NONE) | (plan.kind == W) | (plan.b_cell // m % way == way - 1), nothing, plan.b_cell + m)
    return f_need, b_need
