"""Pricing in batches: same numbers as one at a time, limits as masks, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.planner.prune import LIMITS, Table, even_stages_s, pick, price, rows_of, uses
from roofplan.planner.scenario_io import Problem, resolve
from roofplan.planner.space import Rejections, candidates
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.scenario import Scenario


def priced(**changed: object) -> tuple[Problem, Table]:
    problem = resolve(Scenario(**({"model": "llama3-8b", "n_gpus": 8, "seq_tokens": 32768} | changed)))  # type: ignore[arg-type]
    return problem, price(candidates(problem.asked, Rejections()), problem.prices)


def test_a_row_of_the_table_is_the_price_of_that_plan_alone() -> None:
    problem, table = priced()
    rng = np.random.default_rng(0)
    for i in rng.choice(table.row.size, 60, replace=False):
        plan, work = table.pick(int(i))
        step, memory = problem.step(plan, work), problem.memory(plan, work)
        assert table.step_time_s[i] == pytest.approx(float(step.step_time_s), rel=1e-9)
        assert table.use["hbm"][i] == pytest.approx(float(memory.total_bytes / memory.limit_bytes), rel=1e-9)
        assert table.use["host_ram"][i] == pytest.approx(float(memory.host_bytes / memory.host_limit_bytes), rel=1e-9, abs=1e-12)
        assert table.tokens[i] == work.seq_tokens * work.global_batch


def test_every_candidate_is_in_the_table_once() -> None:
    problem, table = priced()
    total = sum(batch.n for batch in candidates(problem.asked, Rejections()))
    assert table.row.size == total
    pairs = set(zip(table.batch.tolist(), table.row.tolist(), strict=True))
    assert len(pairs) == total
    plans = {repr(table.pick(i)[0]) for i in range(0, total, 7)}
    assert len(plans) == len(range(0, total, 7))


def test_masks_split_the_table() -> None:
    _, table = priced(index_bits=31, seq_tokens=262144)
    broken = {name: table.breaks_only(name) for name in LIMITS}
    for mask in broken.values():
        assert not np.any(mask & table.fits)
    assert np.array_equal(table.fits, np.all([use <= 1 for use in table.use.values()], axis=0))
    assert broken["hbm"].any()


def test_kernel_index_counts_elements_of_the_hidden_state() -> None:
    """524,288 local tokens of Llama-8B's 4,096 hidden are exactly 2^31 elements: the one-GPU limit seen in ALST's recipes."""
    problem, _ = priced(n_gpus=1, seq_tokens=524288, index_bits=31)
    plan = ParallelPlan(framework="deepspeed")
    from roofplan.scenarios.workload import TrainWorkload

    need = uses(plan, TrainWorkload(seq_tokens=524288), problem.prices, 1)["kernel_index"]
    assert need[0] == 1.0
    half = uses(ParallelPlan(framework="deepspeed", cp=2, cp_kind="ulysses"), TrainWorkload(seq_tokens=524288), problem.prices, 1)
    assert half["kernel_index"][0] == 0.5


def test_even_stages_bound_every_partition() -> None:
    """No split of 32 layers over 4 stages is faster than the bound."""
    from roofplan.scenarios.workload import TrainWorkload

    problem, _ = priced()
    work = TrainWorkload(seq_tokens=8192, global_batch=16)
    base = ParallelPlan(framework="megatron", dp=2, pp=4, micro_batch=1, grad_accum=8, recompute="full")
    bound = float(even_stages_s(base, problem.step(base, work)))
    times = []
    for first in range(1, 30):
        for last in range(1, 31 - first):
            if (32 - first - last) % 2 == 0 and 32 - first - last >= 2:
                plan = rows_of(ParallelPlan(framework="megatron", dp=2, pp=4, micro_batch=1, grad_accum=8, recompute="full",
                                            layers_first=first, layers_last=last), 0)  # fmt: skip
                times.append(float(problem.step(plan, work).step_time_s))
    assert len(times) > 100
    assert min(times) >= bound * (1 - 1e-3)
    assert bound >= 0.9 * min(times)


def test_pick_gives_plain_integers() -> None:
    problem, _ = priced()
    batch = next(b for b in candidates(problem.asked, Rejections()) if b.n > 3)
    plan, work = pick(batch, 2)
    assert isinstance(plan.dp, int)
    assert isinstance(work.global_batch, int)
    assert plan.n_gpus == 8


def test_an_empty_space_is_an_empty_table() -> None:
    problem, _ = priced()
    table = price([], problem.prices)
    assert table.row.size == 0
    assert not table.fits.any()
