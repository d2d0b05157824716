"""The solver inside layouts against every mix and split tried out in the cost model itself."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from roofplan.planner.decide import Choice, decide, search, shortlist
from roofplan.planner.engines import ENGINES
from roofplan.planner.prune import Prices, rows_of, uses
from roofplan.planner.refine import apply, hash_text, refine
from roofplan.planner.scenario_io import Problem, resolve
from roofplan.planner.solve import overflow_bytes, solve, step_s
from roofplan.planner.stages import stage_problems
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.scenario import Scenario
from roofplan.scenarios.workload import TrainWorkload

WORK = TrainWorkload(seq_tokens=32768, global_batch=8)


def problem(**changed: object) -> Problem:
    return resolve(Scenario(**({"model": "llama3-8b", "n_gpus": 8, "seq_tokens": 32768} | changed)))  # type: ignore[arg-type]


def fits(prices: Prices, plan: ParallelPlan, work: TrainWorkload) -> bool:
    return all(float(use[0]) <= 1 for use in uses(plan, work, prices, 1).values())


def every_mix(plan: ParallelPlan, n_layers: int) -> ParallelPlan:
    """All recompute counts x shares of checkpoints on the host x optimizer shares in percent, as one batch."""
    axes = np.array(list(itertools.product(range(n_layers + 1), (0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0))))
    return replace(plan, recompute_layers=axes[:, 0].astype(int), offload_activations=axes[:, 1], offload_optimizer=axes[:, 2])


def test_no_mix_of_policies_in_one_layout_is_faster_than_the_solvers() -> None:
    """One data-parallel layout of DeepSpeed at a length where some layers must recompute."""
    p = problem(framework="deepspeed")
    plan = ParallelPlan(
        framework="deepspeed", dp=2, cp=4, cp_inner=4, cp_kind="ulysses", zero_stage=3, micro_batch=1, grad_accum=4, recompute="full",
        fused_loss=1,
    )  # fmt: skip
    work = replace(WORK, seq_tokens=524288)
    (stage,) = stage_problems(p.prices, rows_of(plan, 0), work, 1)
    answer = solve(stage)
    assert answer is not None
    solved = apply(plan, stage, answer)
    assert fits(p.prices, solved, work)
    best = float(p.step(solved, work).step_time_s)
    assert best == pytest.approx(answer.step_s, rel=0.02)
    mixes = every_mix(plan, 32)
    n = len(mixes.recompute_layers)  # type: ignore[arg-type]
    times = np.broadcast_to(p.step(mixes, work).step_time_s, n)
    ok = np.logical_and.reduce([use <= 1 for use in uses(mixes, work, p.prices, n).values()])
    assert ok.any()
    assert not ok.all()
    assert best <= float(times[ok].min()) * (1 + 2e-3)


@pytest.mark.parametrize(("pp", "recompute"), [(4, "full"), (4, "selective"), (8, "full")])
def test_no_split_of_the_pipeline_is_faster_than_the_solvers(pp: int, recompute: str) -> None:
    p = problem(framework="megatron")
    plan = ParallelPlan(
        framework="megatron",
        dp=8 // pp,
        pp=pp,
        zero_stage=1,
        micro_batch=1,
        grad_accum=8 * pp // 8,
        recompute=recompute,  # type: ignore[arg-type]
    )
    work = replace(WORK, seq_tokens=8192)
    (stage,) = stage_problems(p.prices, plan, work, 1)
    assert stage.partition
    answer = solve(stage)
    assert answer is not None
    solved = apply(plan, stage, answer)
    best = float(p.step(solved, work).step_time_s)
    assert best == pytest.approx(answer.step_s, rel=0.02)
    fastest = math.inf
    for first, last in itertools.product(range(1, 32), repeat=2):
        rest = 32 - first - last
        if rest < pp - 2 or rest % (pp - 2):
            continue
        for policy in {"full": ("none", "full")}.get(recompute, (recompute,)):
            split = replace(plan, layers_first=first, layers_last=last, recompute=policy)  # type: ignore[arg-type]
            if fits(p.prices, split, work):
                fastest = min(fastest, float(p.step(split, work).step_time_s))
    assert best <= fastest * (1 + 2e-3)
    even = float(p.step(replace(plan, recompute=solved.recompute), work).step_time_s)
    assert best < even  # the head of 128K words makes even stages slow


def test_coefficients_reproduce_the_prices_they_come_from() -> None:
    p = problem(framework="megatron")
    plan = ParallelPlan(framework="megatron", dp=2, pp=4, zero_stage=1, micro_batch=1, grad_accum=4, recompute="full")
    work = replace(WORK, seq_tokens=8192)
    (stage,) = stage_problems(p.prices, plan, work, 1)
    keep, full = dict.fromkeys(("full",), 0), {"full": 8}
    base = stage.base_layers
    assert step_s(stage, base, keep, 0) == pytest.approx(float(p.step(replace(plan, recompute_layers=0), work).step_time_s), rel=1e-9)
    assert step_s(stage, base, full, 0) == pytest.approx(float(p.step(plan, work).step_time_s), rel=5e-3)
    for count, layers in ((keep, 0), (full, -1)):
        real = p.memory(replace(plan, recompute_layers=layers), work)
        over, _ = overflow_bytes(stage, base, count, 0)
        assert over == pytest.approx(float(real.total_bytes - real.limit_bytes), rel=1e-6, abs=1e6)


def test_refined_plans_beat_the_uniform_ones_and_fit() -> None:
    p = problem(seq_tokens=32768)
    found = search(p)
    uniform = shortlist(found, 1)[0]
    plans, report = refine(found.table, p.prices, uniform.step_time_s)
    assert report.gap_frac == 0
    assert report.status == "optimal"
    assert report.best_s is not None
    assert report.greedy_s is not None
    assert report.best_s <= report.greedy_s <= uniform.step_time_s
    for plan, work in plans:
        assert float(p.step(plan, work).step_time_s) < uniform.step_time_s
        assert fits(p.prices, plan, work)


def test_a_count_limits_the_solver_and_the_gap_says_so() -> None:
    p = problem(model="llama3-70b", n_gpus=64, seq_tokens=8192)
    found = search(p)
    uniform = shortlist(found, 1)[0].step_time_s
    _, report = refine(found.table, p.prices, uniform, max_solved=3)
    assert report.n_solved == 3
    assert report.status == "stopped after 3 programs"
    assert 0 < report.gap_frac < 0.5
    assert refine(found.table, p.prices, 1e-9)[1].n_solved == 0  # nothing can beat a step of no time


def test_a_hopeless_model_is_proved_infeasible() -> None:
    p = problem(model="llama3.1-405b", n_gpus=8, seq_tokens=8192)
    plans, report = refine(search(p).table, p.prices, math.inf)
    assert plans == []
    assert report.status == "infeasible"
    assert report.best_s is None


def test_a_program_that_disagrees_with_the_cost_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(seq_tokens=32768)
    found = search(p)
    uniform = shortlist(found, 1)[0].step_time_s
    monkeypatch.setattr("roofplan.planner.refine.AGREEMENT_FRAC", -1.0)
    plans, report = refine(found.table, p.prices, uniform)
    assert plans == []
    assert report.n_refused > 0
    assert report.best_s == uniform


def test_two_runs_give_the_same_answer() -> None:
    def answer() -> list[tuple[str, float]]:
        choices: list[Choice] = decide(Scenario(model="llama3-8b", n_gpus=8, seq_tokens=32768)).choices
        return [(repr(c.plan), c.step_time_s) for c in choices]

    assert answer() == answer()


def test_layout_keys_tell_words_apart() -> None:
    assert len({hash_text(f"{a} {b}") for a in ENGINES for b in ("zigzag", "ulysses", "none")}) == 3 * len(ENGINES)
