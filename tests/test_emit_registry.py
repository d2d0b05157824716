"""Targets are found by listing the folder; what the planner calls runnable on a framework is expressible by that framework's target."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emit_jobs import ALST, FACTS, job_of
from roofplan.planner.emit import registry
from roofplan.planner.emit.registry import emit_plan, targets
from roofplan.planner.emit.target import CannotExpress, make_job
from roofplan.planner.engines import ENGINES, Engine
from roofplan.planner.space import Asked, Batch, Rejections, candidates
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.registry import accelerator, cluster, model
from roofplan.scenarios.workload import TrainWorkload


def emitted(facts: Any = None, **layout: Any) -> registry.Emitted:
    job = job_of(**layout)
    return emit_plan(model=job.model, plan=job.plan, work=job.work, cluster=job.cluster, accelerator=job.accelerator, facts=facts)


def test_every_module_with_emit_is_a_target() -> None:
    folder = Path(registry.__file__).parent
    wanted = {p.stem for p in folder.glob("*.py") if "\ndef emit(" in p.read_text() and "\nTITLE = " in p.read_text()}
    assert set(targets()) == wanted
    assert {"deepspeed", "script", "launch", "slurm", "fsdp", "megatron", "torchtitan", "arctic", "accelerate"} == wanted
    assert all(module.HOW for module in targets().values())


def test_targets_write_or_say_why_not() -> None:
    found = emitted(FACTS, **ALST)
    assert set(found.written) | set(found.omitted) == set(targets())
    assert not set(found.written) & set(found.omitted)
    assert {file for files in found.written.values() for file in files} | {"README.md", "plan.json"} == set(found.files)
    assert set(found.omitted) == {"fsdp", "megatron", "torchtitan"}


def test_a_plan_no_target_runs_still_has_its_readme() -> None:
    found = emitted(pp=8, schedule="dualpipe", grad_accum=16)
    assert set(found.files) == {"README.md", "plan.json"}
    assert "No target can express this plan" in found.files["README.md"]
    assert "schedule=dualpipe: no flag | 1f1b or interleaved, or torchtitan" in found.files["README.md"]


def test_two_targets_may_not_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets()["arctic"], "emit", lambda job: {"ds_config.json": "{}"})
    with pytest.raises(BadInput, match=r"target deepspeed writes ds_config.json differently from another target"):
        emitted(**ALST)


def test_golden_one_million_tokens_on_eight_gpus(golden: Callable[[str, str], None]) -> None:
    for name, text in emitted(FACTS, **ALST).files.items():
        if not name.endswith(".py"):
            golden(f"emit/alst/{name}", text)


def test_golden_four_axes_on_two_nodes(golden: Callable[[str, str], None]) -> None:
    megatron = emitted(tp=4, pp=2, vpp=4, cp=2, cp_kind="zigzag", seq_tokens=32768, grad_accum=8, schedule="interleaved", recompute="full")
    golden("emit/four-axes/megatron/pretrain.sh", megatron.files["megatron/pretrain.sh"])
    titan = emitted(dp=4, tp=2, pp=2, seq_tokens=8192, grad_accum=8, sharding="fsdp", zero_stage=3)
    golden("emit/four-axes/torchtitan/run.sh", titan.files["torchtitan/run.sh"])
    golden("emit/four-axes/README.md", titan.files["README.md"])


def sample(batch: Batch, n: int, rng: random.Random) -> list[tuple[ParallelPlan, TrainWorkload]]:
    """Some candidates of a batch as single plans."""
    rows = rng.sample(range(batch.n), min(n, batch.n))
    return [(_row(batch.plan, i), _row(batch.work, i)) for i in rows]


def _row(value: Any, i: int) -> Any:
    columns = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **{k: v[i] for k, v in columns.items() if isinstance(v, np.ndarray) and v.size > 1})


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
@pytest.mark.parametrize(("name", "gpus", "seq"), [("llama3-8b", 8, 2**20), ("llama3-8b", 16, 8192), ("qwen3-30b-a3b", 16, 8192)])
def test_the_planner_proposes_only_what_can_be_emitted(engine: Engine, name: str, gpus: int, seq: int) -> None:
    """A sample of the legal layouts of every engine: its own target writes them all."""
    spec, machine, rng = model(name), cluster("h100-sxm", gpus), random.Random(0)
    asked = Asked(model=spec, cluster=machine, engines=(engine,), seq_tokens=seq, global_batch=0, precisions=engine.precisions)
    target, n = targets()[engine.target], 0
    for batch in candidates(asked, Rejections()):
        for plan, work in sample(batch, 6, rng):
            job = make_job(spec, plan, work, machine, accelerator("h100-sxm"), {})
            try:
                target.emit(job)
            except CannotExpress as reason:
                pytest.fail(f"{engine.name} proposes {plan}, but: {reason}")
            n += 1
    assert n > 10
