"""Emits plans of llama3-8b for the tests that execute them, and a plain PyTorch reference to compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roofplan.planner.emit import deepspeed as emit_deepspeed
from roofplan.planner.emit import fsdp, script
from roofplan.planner.emit.target import Job, make_job
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.registry import accelerator, cluster, model
from roofplan.scenarios.workload import TrainWorkload


def job_of(model_name: str = "llama3-8b", seq_tokens: int = 2**20, gpus_per_node: int | None = None, **layout: Any) -> Job:
    """The Job of one layout on H100s."""
    plan = ParallelPlan(**layout)
    n_gpus = int(plan.n_gpus)
    work = TrainWorkload(seq_tokens=seq_tokens, global_batch=int(plan.dp * plan.micro_batch * plan.grad_accum))
    return make_job(model(model_name), plan, work, cluster("h100-sxm", n_gpus, gpus_per_node), accelerator("h100-sxm"), {})


def write_deepspeed(folder: Path, job: Job, **overlay: Any) -> Path:
    """The files train.py needs, in ``folder``; ``overlay`` replaces top-level keys of ds_config.json."""
    for name, text in {**emit_deepspeed.emit(job), **script.emit(job)}.items():
        (folder / name).write_text(text)
    if overlay:
        config = json.loads((folder / "ds_config.json").read_text()) | overlay
        (folder / "ds_config.json").write_text(json.dumps(config))
    return folder


def write_fsdp(folder: Path, job: Job) -> Path:
    """The files train_fsdp2.py needs, in ``folder``."""
    for name, text in fsdp.emit(job).items():
        (folder / name).write_text(text)
    return folder
