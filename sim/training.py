"""Replays one training step: every rank's ops in order, each as soon as its rank is free and its message has arrived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..costmodels.arrays import Array, Reals, as_floats
from ..costmodels.pipeline import span
from ..scenarios.errors import BadInput
from ..scenarios.plan import ParallelPlan
from .schedule import BW, FB, NONE, B, Cells, F, Order, W, order


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds of one micro-batch on one whole stage; a number, or one value per rank.

    ``fused_s`` is a forward and a whole backward run together (0: their sum). ``reduce_s`` is a rank's gradient reduction; at most
    the part ``reduce_overlap_frac`` of it runs beside the rank's last backward.
    """

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
    lasts = durations(plan, times, slow)
    if jitter_frac > 0:
        noise = np.random.default_rng(seed).standard_normal(lasts.shape)
        lasts = lasts * np.exp(jitter_frac * noise - 0.5 * jitter_frac**2)
    start, end = _run(plan, lasts, times.p2p_s if plan.pp > 1 else 0.0)
    last = np.take_along_axis(lasts, (plan.kind != NONE).sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]
    reduce_s = np.broadcast_to(as_floats(times.reduce_s)[0], (plan.pp,))
    exposed = reduce_s - np.minimum(times.reduce_overlap_frac * reduce_s, last)
    return measure(plan, start, end, np.nanmax(end, axis=1) + exposed)


def measure(plan: Order, start: Array, end: Array, done: Array) -> Replay:
    """The measures of a timeline; ``done`` is when each rank has reduced its gradients."""
    busy = np.nansum(end - start, axis=1)
    pipeline = float(np.nanmax(end))
    idle = 1 - busy.sum() / (plan.pp * pipeline) if pipeline > 0 else 0.0
    return Replay(
        order=plan, start_s=start, end_s=end, span_s=float(done.max()), pipeline_s=pipeline, busy_s=busy,
        bubble_s=max(0.0, float(pipeline - busy.max())), bubble_frac=max(0.0, float(idle)), peak_in_flight=peak_in_flight(plan),
    )  # fmt: skip


def peak_in_flight(plan: Order) -> Array:
    """Per rank, the most micro-batches whose activations are held at once; a forward adds ``1/vpp``, the weight gradient frees it."""
    takes = np.isin(plan.kind, (F, FB)).astype(np.float64)
    frees = np.isin(plan.kind, (W, BW, FB)).astype(np.float64)
    before = np.cumsum(takes - frees, axis=1) - (takes - frees)
    out: Array = (before + takes).max(axis=1) / plan.vpp
    return out


def durations(plan: Order, times: StageTimes, slow: Reals = 1.0) -> Array:
    """Seconds of each op, shape of ``plan.kind`` (0 past the end of a list); BadInput if a time is negative or not finite."""
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

    The cell beyond the last stands for "nothing": it is always there, and what ops without a forward or backward write to it is
    wiped each round. Ops are numbered ``rank * longest list + place in the list``.
    """
    nothing, shape = plan.n_cells, plan.kind.shape
    f_need, b_need = (x.ravel() for x in needs(plan, nothing))
    f_cell = np.where(plan.f_cell == NONE, nothing, plan.f_cell).ravel()
    b_cell = np.where((plan.b_cell == NONE) | (plan.kind == W), nothing, plan.b_cell).ravel()
    seconds = lasts.ravel()
    f_end, b_end = np.full(nothing + 1, np.inf), np.full(nothing + 1, np.inf)
    start, end = np.full(seconds.shape, np.nan), np.full(seconds.shape, np.nan)
    at = np.arange(plan.pp) * shape[1]
    stop = at + (plan.kind != NONE).sum(axis=1)
    free = np.zeros(plan.pp)
    active = np.flatnonzero(at < stop)
    while len(active):
        f_end[nothing] = b_end[nothing] = -p2p_s
        ops = at[active]
        ready = np.maximum(f_end[f_need[ops]], b_end[b_need[ops]]) + p2p_s
        go = ready < np.inf
        ranks, ops = active[go], ops[go]
        if not len(ops):
            raise BadInput(f"the {plan.schedule} order for pp={plan.pp}, vpp={plan.vpp}, n_micro={plan.n_micro} waits for itself")
        begin = np.maximum(free[ranks], ready[go])
        finish = begin + seconds[ops]
        start[ops], end[ops], free[ranks] = begin, finish, finish
        f_end[f_cell[ops]] = finish
        b_end[b_cell[ops]] = finish
        at[ranks] = ops + 1
        active = active[at[active] < stop[active]]
    return start.reshape(shape), end.reshape(shape)


def needs(plan: Order, nothing: int) -> tuple[Cells, Cells]:
    """The forward cell and the backward cell each op waits for; ``nothing`` where it waits for none.

    A forward waits for the piece before it, a backward for the piece after it. The last piece's backward waits for its own forward,
    which its rank has already run.
    """
    m, way = plan.n_micro, plan.pieces_per_way
    f_need = np.where((plan.f_cell == NONE) | (plan.f_cell // m % way == 0), nothing, plan.f_cell - m)
    b_need = np.where((plan.b_cell == NONE) | (plan.kind == W) | (plan.b_cell // m % way == way - 1), nothing, plan.b_cell + m)
    return f_need, b_need


class StepTimes(Protocol):
    """What a replay needs of a priced step (`costmodels.training.StepCost` of one candidate); the micro times are the slowest stage's."""

    @property
    def micro_fwd_s(self) -> Reals: ...
    @property
    def micro_bwd_s(self) -> Reals: ...
    @property
    def micro_wgrad_s(self) -> Reals: ...
    @property
    def p2p_s(self) -> Reals: ...
    @property
    def bubble_s(self) -> Reals: ...
    @property
    def exposed_dp_s(self) -> Reals: ...
    @property
    def optimizer_s(self) -> Reals: ...
    @property
    def overhead_s(self) -> Reals: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReplay:
    """A replayed step: its pipeline, and ``step_time_s`` with gradient reduction, optimizer and overhead after it."""

    step_time_s: float
    pipeline: Replay


def replay_step(cost: StepTimes, plan: ParallelPlan, *, jitter_frac: float = 0.0, seed: int = 0) -> StepReplay:
    """Play one priced candidate and check its closed form.

    The last rank is the slowest stage; the others are lighter by as much as the cost's bubble is below that of equal stages.
    BadInput if the plan holds more than one candidate or its schedule cannot run its counts.
    """
    f, b, w, p2p = (_one(x) for x in (cost.micro_fwd_s, cost.micro_bwd_s, cost.micro_wgrad_s, cost.p2p_s))
    pp, vpp, m = (int(_one(x)) for x in (plan.pp, plan.vpp, plan.grad_accum))
    equal = float(span(plan.schedule, pp, vpp, m, f, b, w, p2p).bubble_s)
    lighter = (equal - _one(cost.bubble_s)) * vpp / max(pp - 1, 1) / (f + b + w)
    slow = np.full(pp, 1 - min(max(lighter, 0.0), 1.0))
    slow[-1] = 1.0
    times = StageTimes(fwd_s=f, bwd_input_s=b, bwd_weight_s=w, p2p_s=p2p)
    played = replay(order(plan.schedule, pp, vpp, m), times, slow=slow, jitter_frac=jitter_frac, seed=seed)
    after = _one(cost.exposed_dp_s) + _one(cost.optimizer_s) + _one(cost.overhead_s)
    return StepReplay(step_time_s=played.span_s + after, pipeline=played)


def _one(value: Reals) -> float:
    if np.size(value) != 1:
        raise BadInput(f"a replay plays one candidate, not {np.size(value)}; take one row of the plan and its cost")
    return float(np.asarray(value).reshape(()))
