"""Searches, ranks and explains: from a scenario to a Decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.memory import MemoryBreakdown
from ..costmodels.training import StepCost
from ..scenarios.errors import BadInput
from ..scenarios.plan import ParallelPlan
from ..scenarios.scenario import Scenario
from ..scenarios.workload import TrainWorkload
from .longest import longest
from .prune import Prices, Table, price, rows_of
from .refine import SolverReport, refine
from .scenario_io import Problem, resolve
from .space import Asked, Rejections, candidates

Progress = Callable[[str], None]
MAX_BATCH_GROWTH = 4
"""Objective ``throughput`` may grow a default batch up to this factor: larger ones change what is learned per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One priced plan: where it runs, what it costs. Times are per step of ``work.global_batch`` sequences."""

    plan: ParallelPlan
    work: TrainWorkload
    step: StepCost
    memory: MemoryBreakdown
    problem: Problem
    solved_by: str = "enumeration"

    @property
    def n_gpus(self) -> int:
        return int(self.plan.n_gpus)

    @property
    def step_time_s(self) -> float:
        return float(self.step.step_time_s)

    @property
    def tokens(self) -> float:
        return float(self.work.seq_tokens * self.work.global_batch)

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens / self.step_time_s / self.n_gpus

    @property
    def mfu_frac(self) -> float:
        """FLOPs the method needs (causal attention, no recompute) over ``time * n_gpus * dense peak`` of the plan's precision."""
        return float(self.step.floor_s) / self.step_time_s

    @property
    def usd_per_mtoken(self) -> float | None:
        """Price of a million tokens; None when the cluster has no known price."""
        return self.problem.usd_per_s * self.step_time_s / self.tokens * 1e6 if self.problem.usd_per_s else None

    @property
    def score(self) -> tuple[float, ...]:
        """What the objective minimises, most important first."""
        per_token = self.step_time_s / self.tokens
        match self.problem.scenario.objective:
            case "time":
                return (self.step_time_s,)
            case "throughput":
                return (per_token,)
            case "cost":
                return (per_token * self.problem.usd_per_s, self.step_time_s)
            case "max-seq":
                return (-float(self.work.seq_tokens), per_token)


@dataclass(slots=True, kw_only=True)
class Searched:
    """One problem's whole search: every candidate priced, and what the rules turned away."""

    problem: Problem
    table: Table
    rejections: Rejections
    n_legal: int


@dataclass(slots=True, kw_only=True)
class Decision:
    """The answer: ranked choices (none: nothing fits), the best of each framework, and what is needed to explain them."""

    scenario: Scenario
    choices: list[Choice]
    searched: list[Searched]
    solver: SolverReport
    n_candidates: int
    price_wall_s: float
    wall_s: float
    by_framework: dict[str, Choice] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def problem(self) -> Problem:
        """The problem the winner solves; the first one asked when nothing fits."""
        return self.choices[0].problem if self.choices else self.searched[0].problem


def decide(scenario: Scenario, *, progress: Progress = lambda text: None) -> Decision:
    """Search every legal layout, refine the promising ones with the solver, rank them.

    Raises BadInput for a scenario that cannot be searched; a scenario that no plan fits gives a Decision without choices.
    """
    started = time.perf_counter()
    if scenario.task != "train":
        raise BadInput(f"--task {scenario.task} is not available in this version of roofplan; it plans training (--task train)")
    searched, choices, leaders, reports = [], [], [], []
    for problem in variants(resolve(scenario)):
        progress(f"pricing layouts on {problem.cluster.n_gpus} GPUs")
        found = search(problem)
        best = shortlist(found, scenario.top)
        progress("solving recompute, offload and pipeline partition")
        refined, report = _refined(found, best)
        searched.append(found)
        reports.append(report)
        choices += best + [_choice(problem, plan, work, report.name) for plan, work in refined]
        leaders += best_by_framework(found)
    leaders += choices
    leaders.sort(key=lambda c: c.score, reverse=True)
    n = sum(s.table.row.size for s in searched)
    return Decision(
        scenario=scenario, choices=rank(choices, scenario.top), searched=searched, solver=_worst(reports, n), n_candidates=n,
        by_framework={c.plan.framework: c for c in leaders},
        price_wall_s=sum(s.table.wall_s for s in searched), wall_s=time.perf_counter() - started, notes=list(searched[0].problem.notes),
    )  # fmt: skip


def _refined(found: Searched, best: list[Choice]) -> tuple[list[tuple[ParallelPlan, TrainWorkload]], SolverReport]:
    """The solver's plans; under ``max-seq`` every layout is already at its own longest sequence, to the token step, by bisection."""
    if not found.problem.seq_tokens:
        return [], SolverReport(name="bisection")
    return refine(found.table, found.problem.prices, best[0].step_time_s if best else np.inf)


def variants(problem: Problem) -> list[Problem]:
    """The problems an objective compares: fewer GPUs for ``cost``, larger batches for ``throughput``, else just the one.

    The batch of a cost search is that of the whole cluster, so every count of GPUs does the same work.
    """
    objective, n = problem.scenario.objective, problem.cluster.n_gpus
    if objective == "throughput" and not problem.scenario.global_batch:
        return [replace(problem, global_batch=problem.global_batch * 2**k) for k in range(MAX_BATCH_GROWTH.bit_length())]
    if objective != "cost":
        return [problem]
    out = [problem]
    while n % 2 == 0:
        n //= 2
        try:
            out.append(replace(problem, cluster=problem.cluster.with_gpus(n)))
        except BadInput:
            break
    return out


def search(problem: Problem, *, lifted: frozenset[str] = frozenset()) -> Searched:
    """Enumerate and price every legal layout of one problem; or, with ``lifted``, those that only these rules forbid."""
    rejections = Rejections()
    batches = list(candidates(problem.asked, rejections, lifted=lifted))
    n_legal, _ = sum(b.n for b in batches), problem.system  # the calibration is read before the clock of the prices starts
    fitted: Iterable[Any] = batches if problem.seq_tokens else longest(batches, problem.prices)
    return Searched(problem=problem, table=price(fitted, problem.prices), rejections=rejections, n_legal=n_legal)


def shortlist(found: Searched, k: int) -> list[Choice]:
    """The best ``k`` fitting layouts of different shape, each shape by its best candidate."""
    table = found.table
    rows = np.flatnonzero(table.fits)
    order = rows[np.lexsort(sort_keys(found, rows))]
    _, first = np.unique(shape_keys(table)[order], return_index=True)
    best = order[np.sort(first)[:k]]
    return [_choice(found.problem, *table.pick(int(i)), "enumeration") for i in best]


def best_by_framework(found: Searched) -> list[Choice]:
    """The best fitting candidate of each framework."""
    table, best = found.table, []
    frameworks = np.array([b.plan.framework for b in table.batches])
    for name in dict.fromkeys(frameworks.tolist()):
        rows = np.flatnonzero(table.fits & (frameworks[table.batch] == name))
        if rows.size:
            row = rows[np.lexsort(sort_keys(found, rows))[0]]
            best.append(_choice(found.problem, *table.pick(int(row)), "enumeration"))
    return best


def sort_keys(found: Searched, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    """Keys for ``np.lexsort`` (last is first): the objective, then device memory, so equal plans prefer the roomier."""
    table, time_s = found.table, found.table.step_time_s[rows]
    per_token, roomy = time_s / table.tokens[rows], table.use["hbm"][rows]
    if found.problem.scenario.objective == "max-seq":
        return roomy, per_token, -table.seq_tokens[rows]
    return roomy, per_token


def shape_keys(table: Table) -> NDArray[np.int64]:
    """One number per candidate that is equal exactly for equal shapes (a 64-bit hash of degrees and kind)."""
    keys = []
    for batch in table.batches:
        plan, key = batch.plan, np.zeros(batch.n, np.int64)
        kind = np.int64(sum(ord(c) * 31**i for i, c in enumerate(plan.cp_kind)))
        for column in (plan.dp, plan.tp, plan.pp, plan.cp, plan.cp_inner, plan.ep, kind):
            key = (key ^ column) * np.int64(6364136223846793005) + np.int64(1442695040888963407)
        keys.append(key)
    return np.concatenate(keys) if keys else np.zeros(0, np.int64)


def rank(choices: list[Choice], k: int) -> list[Choice]:
    """The best ``k`` by the objective, one per shape, batch and number of GPUs."""
    seen: set[tuple[object, ...]] = set()
    out = []
    for choice in sorted(choices, key=lambda c: (c.score, float(c.memory.total_bytes))):
        p = choice.plan
        key = (p.dp, p.tp, p.pp, p.cp, p.cp_inner, p.ep, p.cp_kind, choice.n_gpus, choice.work.global_batch)
        if key not in seen:
            seen.add(key)
            out.append(choice)
    return out[:k]


def _choice(problem: Problem, plan: ParallelPlan, work: TrainWorkload, solved_by: str) -> Choice:
    step, memory = problem.step(plan, work), problem.memory(plan, work)
    return Choice(plan=plan, work=work, step=scalars(step), memory=scalars(memory), problem=problem, solved_by=solved_by)


def scalars(item: Any) -> Any:
    """The same dataclass with 0-d arrays as plain floats."""
    return rows_of(item, ())


def _worst(reports: list[SolverReport], n: int) -> SolverReport:
    """The least certain of several solves speaks for all; the times add up."""
    worst = max(reports, key=lambda r: r.gap_frac)
    return replace(worst, wall_s=sum(r.wall_s for r in reports), n_candidates=n)


__all__ = ["Asked", "Choice", "Decision", "Prices", "Searched", "decide", "rank", "search", "shortlist", "variants"]
