"""Turns promising layouts into integer programs, solves them, and takes an answer only if the cost model agrees with it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scenarios.plan import ParallelPlan
from ..scenarios.workload import TrainWorkload
from .constraints import StageProblem
from .engines import ENGINES
from .prune import Prices, Table, rows_of, uses
from .solve import StageSolution, bound_s, greedy, solve
from .space import Batch
from .stages import movable, stage_problems

AGREEMENT_FRAC = 0.02
"""The program's step time and the cost model's may differ by this much (overlap is not linear); beyond it the answer is refused."""
MAX_SOLVED = 400
"""Programs solved at most: a count, not a time, so that a busy machine gives the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverReport:
    """What the solver did. ``gap_frac``: how much faster an unexplored layout could still be.

    ``best_s``, ``greedy_s`` and ``uniform_s`` are the best step times with it, with the greedy rule instead, and with one policy per plan.
    """

    name: str = "HiGHS"
    status: str = "optimal"
    gap_frac: float = 0.0
    wall_s: float = 0.0
    n_candidates: int = 0
    n_solved: int = 0
    n_refused: int = 0
    best_s: float | None = None
    greedy_s: float | None = None
    uniform_s: float | None = None


@dataclass(slots=True)
class _Found:
    best_s: float
    greedy_s: float
    plans: list[tuple[ParallelPlan, TrainWorkload]]
    n_solved: int = 0
    n_refused: int = 0
    gap_frac: float = 0.0


def refine(
    table: Table, prices: Prices, uniform_s: float, max_solved: int = MAX_SOLVED
) -> tuple[list[tuple[ParallelPlan, TrainWorkload]], SolverReport]:
    """Better plans than the best uniform one, layout by layout in order of how fast each could be at most.

    A layout's bound is its fastest candidate with all limits ignored and even stages; layouts whose bound does not beat the best plan
    so far are skipped, so when none is left unexplored the gap is 0.
    """
    started = time.perf_counter()
    found = _Found(best_s=uniform_s, greedy_s=uniform_s, plans=[])
    unexplored = math.inf
    for batch, rows, bounds in _promising(table, uniform_s):
        keep = bounds < found.best_s
        if keep.any():
            left = _solve_batch(prices, batch, rows[keep], bounds[keep], found, max_solved)
            unexplored = min(unexplored, left)
    gap = max(found.gap_frac, 1 - unexplored / found.best_s if math.isfinite(found.best_s) else 0.0, 0.0)
    proved = "optimal" if math.isfinite(found.best_s) else "infeasible"
    complete = gap == 0 and (math.isfinite(found.best_s) or math.isinf(unexplored))
    return found.plans, SolverReport(
        status=proved if complete else f"stopped after {found.n_solved} programs", gap_frac=gap,
        wall_s=time.perf_counter() - started, n_solved=found.n_solved, n_refused=found.n_refused, best_s=_finite(found.best_s),
        greedy_s=_finite(found.greedy_s), uniform_s=_finite(uniform_s),
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _promising(table: Table, best_s: float) -> list[tuple[Batch, NDArray[np.int64], NDArray[np.float64]]]:
    """(batch, rows, bound of each) where mixing could beat ``best_s``, the most promising batch first."""
    if not table.row.size:
        return []
    keys = np.concatenate([_layout_key(batch) for batch in table.batches])
    _, group = np.unique(keys, return_inverse=True)
    bound = np.full(group.max() + 1, np.inf)
    np.minimum.at(bound, group, table.bound_s)
    out = []
    for number, batch in enumerate(table.batches):
        here = np.flatnonzero(table.batch == number)
        mine = bound[group[here]]
        ok = _startable(batch) & (mine < best_s)
        if ok.any():
            order = np.flatnonzero(ok)[np.argsort(mine[ok], kind="stable")]
            out.append((batch, table.row[here][order].astype(np.int64), mine[order]))
    return sorted(out, key=lambda item: float(item[2].min()))


def _layout_key(batch: Batch) -> NDArray[np.int64]:
    """One number per row, equal exactly for rows that differ only in what the program decides."""
    plan, key = batch.plan, np.zeros(batch.n, np.int64)
    words = f"{plan.framework} {plan.cp_kind} {plan.schedule} {plan.sharding} {plan.precision}"
    key += np.int64(hash_text(words))
    for name in ("dp", "tp", "pp", "vpp", "cp", "cp_inner", "ep", "expert_tp", "zero_stage", "hsdp_group", "micro_batch", "grad_accum",
                 "offload_params", "tiled_mlp", "fused_loss"):  # fmt: skip
        key = (key ^ np.asarray(getattr(plan, name))) * np.int64(6364136223846793005) + np.int64(1442695040888963407)
    return key


def hash_text(words: str) -> int:
    """A 63-bit number of a text, the same in every process."""
    value = 0
    for byte in words.encode():
        value = (value * 131 + byte) % (2**61 - 1)
    return value


def _startable(batch: Batch) -> NDArray[np.bool_]:
    """Rows a program may start from: nothing on the host that it decides, and a framework that can mix or move layers."""
    plan, engine = batch.plan, ENGINES[batch.plan.framework]
    mixes = plan.recompute in ("full", "remat") and engine.partial_recompute
    moves = movable(plan, engine) & (plan.recompute != "none")
    decides_optimizer = np.equal(plan.pp, 1) & np.greater(plan.zero_stage, 0) & (1 in engine.offload_optimizer)
    clean = np.equal(plan.offload_activations, 0) & (np.equal(plan.offload_optimizer, 0) | ~decides_optimizer)
    return np.broadcast_to(np.asarray((mixes | moves) & clean), batch.n)


def _solve_batch(
    prices: Prices, batch: Batch, rows: NDArray[np.int64], bounds: NDArray[np.float64], found: _Found, max_solved: int
) -> float:
    """Solve the rows, most promising first; the best bound among those left unsolved because ``max_solved`` was reached."""
    if found.n_solved >= max_solved:
        return float(bounds[0])
    plan, work = rows_of(batch.plan, rows), rows_of(batch.work, rows)
    for i, p in enumerate(stage_problems(prices, plan, work, rows.size)):
        if bounds[i] >= found.best_s:
            break  # rows come in order of their bounds
        if bound_s(p) >= found.best_s:
            continue
        if found.n_solved >= max_solved:
            return float(bounds[i])
        one, load = rows_of(plan, i), rows_of(work, i)
        answer, simple = solve(p), greedy(p)
        found.n_solved += 1
        if simple is not None and simple.step_s < found.greedy_s and (real := _agreed(prices, apply(one, p, simple), load, simple)):
            found.greedy_s = min(found.greedy_s, real)
        if answer is None:
            continue
        found.gap_frac = max(found.gap_frac, answer.gap_frac)
        if answer.step_s < found.best_s:
            better = apply(one, p, answer)
            real = _agreed(prices, better, load, answer)
            found.n_refused += real is None
            if real is not None and real < found.best_s:
                found.best_s = real
                found.plans.append((better, load))
    return math.inf


def _agreed(prices: Prices, plan: ParallelPlan, work: TrainWorkload, solution: StageSolution) -> float | None:
    """The cost model's step time of a solution; None if it differs from the program's or a limit breaks."""
    real = float(prices.step(plan, work).step_time_s)
    return real if abs(real - solution.step_s) <= AGREEMENT_FRAC * real and _fits(prices, plan, work) else None


def _fits(prices: Prices, plan: ParallelPlan, work: TrainWorkload) -> bool:
    return all(bool(use[0] <= 1.0) for use in uses(plan, work, prices, 1).values())


def apply(plan: ParallelPlan, p: StageProblem, solution: StageSolution) -> ParallelPlan:
    """The plan with the solution's choices in its fields; the optimizer's share is rounded up to a whole percent."""
    n = sum(solution.count.values())
    mixed: dict[str, Any] = {"recompute_layers": -1, "offload_activations": 0}
    if p.options and not n:
        mixed["recompute"] = "none"
    elif p.options:
        mixed["recompute_layers"] = n if n < max(solution.layers.values()) else -1
        mixed["offload_activations"] = _share(solution.count.get("offload", 0) / n)
    if p.optimizer_bytes:
        mixed["offload_optimizer"] = _share(math.ceil(solution.offload_frac * 100 - 1e-6) / 100)
    if p.partition:
        even = len(set(solution.layers.values())) == 1
        mixed |= {"layers_first": 0 if even else solution.layers["first"], "layers_last": 0 if even else solution.layers["last"]}
    return replace(plan, **mixed)


def _share(part: float) -> float:
    """0 and 1 as integers, so that a plan without a mix reads like an enumerated one."""
    return part if 0 < part < 1 else int(part)
