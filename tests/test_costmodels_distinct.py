"""Pricing each distinct layer once gives every candidate the price it has alone; stacking works changes nothing."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
from roofplan.costmodels import distinct as module
from roofplan.costmodels import op
from roofplan.costmodels.training import train_step
from roofplan.planner.prune import rows_of
from roofplan.planner.scenario_io import resolve
from roofplan.planner.space import Batch, Rejections, candidates
from roofplan.scenarios.scenario import Scenario

CASES = [("llama3-8b", "h100-sxm", 64, 8192), ("mixtral-8x7b", "a100-80gb-sxm", 16, 4096), ("deepseek-v3", "h800", 64, 4096)]


def batches(model: str, gpu: str, n_gpus: int, seq: int) -> tuple[object, list[Batch]]:
    problem = resolve(Scenario(model=model, gpu=gpu, n_gpus=n_gpus, seq_tokens=seq))
    return problem, [b for b in candidates(problem.asked, Rejections()) if b.n >= module.WORTH_IT][::5]


@pytest.mark.parametrize(("model", "gpu", "n_gpus", "seq"), CASES)
def test_sharing_prices_changes_none(model: str, gpu: str, n_gpus: int, seq: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, found = batches(model, gpu, n_gpus, seq)
    assert found
    shared = [problem.step(b.plan, b.work) for b in found]  # type: ignore[attr-defined]
    once = [train_step(problem.model, b.plan, b.work, problem.system_of(b.plan)) for b in found]  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "WORTH_IT", 10**12)
    monkeypatch.setattr(op, "STACK_MAX", 0)
    for batch, *costs in zip(found, shared, once, strict=True):
        alone = train_step(problem.model, batch.plan, batch.work, problem.system_of(batch.plan))  # type: ignore[attr-defined]
        for f, cost in product(fields(alone), costs):
            np.testing.assert_allclose(getattr(cost, f.name), getattr(alone, f.name), rtol=1e-9, atol=1e-12, err_msg=f.name)


def test_a_row_of_a_batch_costs_what_the_plan_alone_costs() -> None:
    problem, found = batches(*CASES[1])
    for batch in found:
        row = batch.n // 3
        one = problem.step(rows_of(batch.plan, row), rows_of(batch.work, row))  # type: ignore[attr-defined]
        whole = problem.step(batch.plan, batch.work)  # type: ignore[attr-defined]
        for f in fields(one):
            assert np.broadcast_to(getattr(whole, f.name), batch.n)[row] == pytest.approx(float(getattr(one, f.name)), rel=1e-9, abs=1e-12)


def test_short_batches_are_left_alone() -> None:
    problem, found = batches(*CASES[0])
    del problem
    plan = rows_of(found[0].plan, np.arange(5))
    from roofplan.costmodels.shard import shard

    cut = shard(resolve(Scenario(model=CASES[0][0], n_gpus=64)).model, plan, replace(rows_of(found[0].work, np.arange(5))))
    same_plan, same_cut, back = module.distinct(plan, cut)
    assert back is None
    assert same_plan is plan
    assert same_cut is cut
