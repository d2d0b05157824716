"""Random scenarios over all models and GPUs: no traceback, no physical floor beaten, memory conserved.

ROOFPLAN_EXAMPLES sets how many: 400 by default, 2,000 in `.ci/run`.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roofplan.costmodels.memory import PARTS
from roofplan.planner.answer import as_json
from roofplan.planner.decide import decide
from roofplan.planner.engines import ENGINES
from roofplan.planner.longest import longest
from roofplan.planner.prune import rows_of
from roofplan.planner.scenario_io import Problem, resolve
from roofplan.planner.space import Asked, Batch, Rejections, candidates
from roofplan.scenarios.errors import RoofplanError
from roofplan.scenarios.load import names
from roofplan.scenarios.scenario import MAX_SEQ, OBJECTIVES, OPTIMIZERS, Scenario
from roofplan.scenarios.workload import TrainWorkload

STEP_PARTS = ("compute_s", "bubble_s", "exposed_tp_s", "exposed_cp_s", "exposed_ep_s", "exposed_dp_s", "exposed_pp_s",
              "exposed_offload_s", "optimizer_s", "overhead_s")  # fmt: skip
EXAMPLES = int(os.environ.get("ROOFPLAN_EXAMPLES", "400"))
FREE = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def scenarios(draw: Any, most_gpus: int = 256) -> Scenario:
    """Any model on any GPU, sensible or not."""
    longest_wanted = draw(st.integers(0, 7)) == 0
    lengths = st.one_of(st.sampled_from([1, 512, 2048, 8192, 131072, 2**20, 2**24]), st.integers(1, 300_000))
    sizes = st.one_of(st.sampled_from([1, 2, 4, 8, 16, 24, 64, 128, 256, 2048, 16384]), st.integers(1, 600))
    objective = "max-seq" if longest_wanted else draw(st.sampled_from([o for o in OBJECTIVES if o != "max-seq"]))
    allow = draw(st.sampled_from([(), ("quant",), ("lossy:2", "retrain")]))
    return Scenario(
        model=draw(st.sampled_from(sorted(names("models")))), gpu=draw(st.sampled_from(sorted(names("hardware")))),
        n_gpus=min(draw(sizes), most_gpus), seq_tokens=MAX_SEQ if longest_wanted else draw(lengths), objective=objective,
        allow=allow, global_batch=draw(st.sampled_from([0, 0, 0, 1, 16, 60])), micro_batch=draw(st.sampled_from([0, 0, 0, 1, 2])),
        precision=draw(st.sampled_from(["bf16", "bf16", "fp8", "fp16"])) if "quant" in allow else "bf16",
        optimizer=draw(st.sampled_from(OPTIMIZERS)), framework=draw(st.sampled_from(sorted(ENGINES))),
        gpus_per_node=draw(st.sampled_from([0, 0, 0, 4, 8])), index_bits=draw(st.sampled_from([0, 0, 31])),
    )  # fmt: skip


def problem_of(scenario: Scenario) -> Problem | None:
    """The resolved problem; None for a scenario that is refused, which must be one sentence."""
    try:
        return resolve(scenario)
    except RoofplanError as error:
        assert str(error)
        assert "\n" not in str(error)
        return None


@settings(FREE, max_examples=EXAMPLES)
@given(scenario=scenarios(), salt=st.integers(0, 2**31))
def test_prices_respect_physics(scenario: Scenario, salt: int) -> None:
    problem = problem_of(scenario)
    if problem is None:
        return
    rng = np.random.default_rng(salt)
    batches = [b for b in candidates(narrow(problem.asked, rng), Rejections()) if b.n]
    for number in rng.choice(len(batches), min(2, len(batches)), replace=False) if batches else ():
        check(problem, sample(batches[number], rng), rng)


def narrow(asked: Asked, rng: np.random.Generator) -> Asked:
    """One random kind of context parallelism, schedule and recompute policy: a tenth of the space, all of it over the examples."""
    (engine,) = asked.engines
    kinds = tuple(rng.permutation(engine.cp_kinds)[:1].tolist())
    schedules = tuple(rng.permutation(engine.schedules)[:1].tolist())
    policies = tuple(rng.permutation(engine.recompute)[:1].tolist())
    return replace(asked, engines=(replace(engine, cp_kinds=kinds, schedules=schedules, recompute=policies),))


def sample(batch: Batch, rng: np.random.Generator) -> Batch:
    """At most fifty rows of a batch; a free sequence gets a length."""
    rows = rng.choice(batch.n, min(50, batch.n), replace=False)
    work: TrainWorkload = rows_of(batch.work, rows)
    if np.all(np.equal(work.seq_tokens, 1)):
        work = replace(work, seq_tokens=np.full(rows.size, 65536))
    return Batch(plan=rows_of(batch.plan, rows), work=work, n=rows.size)


def check(problem: Problem, batch: Batch, rng: np.random.Generator) -> None:
    step, memory = problem.step(batch.plan, batch.work), problem.memory(batch.plan, batch.work)
    time = np.broadcast_to(step.step_time_s, batch.n)
    assert np.all(np.isfinite(time))
    assert np.all(time >= np.asarray(step.floor_s) * (1 - 1e-12))
    done = 1 / 3 if batch.plan.optimizer == "mezo" else 1.0  # MeZO only runs forward
    useful = done * np.asarray(step.model_flops) / problem.cluster.n_gpus
    assert np.all(useful / problem.accelerator.peak_flops_per_s(batch.plan.precision) <= time * (1 + 1e-9))
    parts = sum(np.broadcast_to(getattr(step, name), batch.n) for name in STEP_PARTS)
    assert np.all(np.minimum.reduce([np.broadcast_to(getattr(step, name), batch.n) for name in STEP_PARTS]) >= 0)
    assert np.all(time >= parts * (1 - 1e-9))
    kept = sum(np.broadcast_to(getattr(memory, name), batch.n) for name in PARTS)
    np.testing.assert_allclose(kept, np.broadcast_to(memory.total_bytes, batch.n), rtol=1e-9)
    assert np.all(np.minimum.reduce([np.broadcast_to(getattr(memory, name), batch.n) for name in PARTS]) >= 0)
    assert np.all(np.isfinite(memory.host_bytes))
    assert np.all(np.asarray(memory.host_bytes) >= 0)
    one = int(rng.integers(batch.n))
    alone = problem.step(rows_of(batch.plan, one), rows_of(batch.work, one))
    np.testing.assert_allclose(float(alone.step_time_s), time[one], rtol=1e-9)


@settings(FREE, max_examples=60)
@given(scenario=scenarios(most_gpus=32))
def test_decisions_are_whole(scenario: Scenario) -> None:
    if problem_of(scenario) is None:
        return
    decision = decide(scenario)
    data = as_json(decision)
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text)["plans"] == data["plans"]
    for choice in decision.choices:
        use = choice.problem.memory(choice.plan, choice.work)
        assert use.total_bytes <= use.limit_bytes
        assert use.host_bytes <= use.host_limit_bytes
        assert choice.plan.n_gpus == choice.n_gpus
        assert choice.plan.dp * choice.plan.micro_batch * choice.plan.grad_accum == choice.work.global_batch
        assert 0 < choice.mfu_frac <= 1
    assert [c.score for c in decision.choices] == sorted(c.score for c in decision.choices)
    assert bool(data["plans"]) != bool(data["nearest"])


@settings(FREE, max_examples=40)
@given(scenario=scenarios(most_gpus=64))
def test_the_longest_sequence_keeps_every_limit(scenario: Scenario) -> None:
    problem = problem_of(replace(scenario, seq_tokens=MAX_SEQ, objective="max-seq"))
    if problem is None:
        return
    for batch in list(longest(candidates(problem.asked, Rejections()), problem.prices))[:3]:
        memory = problem.memory(batch.plan, batch.work)
        assert np.all(np.asarray(memory.total_bytes) <= np.asarray(memory.limit_bytes))
        assert np.all(np.asarray(memory.host_bytes) <= np.asarray(memory.host_limit_bytes))
