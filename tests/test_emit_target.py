"""A job's numbers agree with each other; JSON and YAML are what readers expect."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from emit_jobs import job_of
from roofplan.planner.emit.target import CannotExpress, make_job, refuse, scalars, to_json, to_yaml
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.registry import accelerator, cluster, model
from roofplan.scenarios.workload import TrainWorkload


def make(plan: ParallelPlan, batch: int, seq: int = 8192, gpus: int = 8) -> object:
    work = TrainWorkload(seq_tokens=seq, global_batch=batch)
    return make_job(model("llama3-8b"), plan, work, cluster("h100-sxm", gpus), accelerator("h100-sxm"), {})


def test_ranks_must_be_the_clusters() -> None:
    with pytest.raises(BadInput, match=r"dp=2 tp=2 pp=1 cp=1 is 4 ranks, the cluster has n_gpus=8"):
        make(ParallelPlan(dp=2, tp=2), 2)


def test_batch_must_be_the_workloads() -> None:
    with pytest.raises(BadInput, match=r"dp=8 micro_batch=2 grad_accum=3 is 48 sequences a step, the workload asks for global_batch=64"):
        make(ParallelPlan(dp=8, micro_batch=2, grad_accum=3), 64)


def test_cp_must_divide_the_sequence() -> None:
    with pytest.raises(BadInput, match=r"cp=8 does not divide seq_tokens=8190"):
        make(ParallelPlan(cp=8, cp_kind="ulysses"), 1, seq=8190)


def test_one_candidate_of_numpy_numbers_becomes_plain() -> None:
    plan = scalars(ParallelPlan(dp=np.int64(4), tp=np.array([2]), offload_activations=np.float64(0.5)))  # type: ignore[arg-type]
    assert plan == ParallelPlan(dp=4, tp=2, offload_activations=0.5)  # type: ignore[arg-type]
    assert type(plan.dp) is int
    json.dumps(dataclasses.asdict(plan))


def test_many_candidates_are_refused() -> None:
    with pytest.raises(BadInput, match="dp holds 2 candidates; emit one plan at a time"):
        scalars(ParallelPlan(dp=np.array([4, 8])))


def test_nodes_and_ranks() -> None:
    job = job_of(dp=32, zero_stage=3)
    assert (job.world, job.nodes, job.ranks_per_node) == (32, 4, 8)


def test_refuse_names_the_first_reason() -> None:
    refuse((0, "a", "b"), ("", "c", "d"))
    with pytest.raises(CannotExpress, match="c; nearest: d") as caught:
        refuse((False, "a", "b"), (1, "c", "d"), (1, "e", "f"))
    assert (caught.value.what, caught.value.nearest) == ("c", "d")


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        to_json({"x": float("nan")})


def test_yaml_keeps_types() -> None:
    """Small floats carry a point (``1e-05`` is text in YAML 1.1), text is quoted (``no`` would be false), lists of mappings nest."""
    data = {
        "lr": 1e-05,
        "big": 2.5e-07,
        "x": 0.95,
        "on": True,
        "text": "no",
        "n": 3,
        "list": [0.9, 1e-08],
        "maps": [{"a": 1, "b": "c"}],
        "in": {"y": None},
    }
    assert to_yaml(data) == (
        'lr: 1.0e-05\nbig: 2.5e-07\nx: 0.95\non: true\ntext: "no"\nn: 3\nlist: [0.9, 1.0e-08]\n'
        'maps:\n  - a: 1\n    b: "c"\nin:\n  y: null\n'
    )  # fmt: skip
