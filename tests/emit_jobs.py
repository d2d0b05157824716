"""Jobs for the tests of the emitters: one layout on H100s, and the plan of Llama-3-8B at 1M tokens on 8 of them."""

from __future__ import annotations

from typing import Any

from roofplan.planner.emit.target import Job, make_job
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.registry import accelerator, cluster, model
from roofplan.scenarios.workload import TrainWorkload

ALST: dict[str, Any] = {
    "cp": 8, "cp_kind": "ulysses", "zero_stage": 3, "offload_optimizer": 1, "recompute": "full", "offload_activations": 1,
    "tiled_mlp": 1, "fused_loss": 1,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "step_time_s": 512.25,
    "tokens_per_s_per_gpu": 255.9,
    "mfu_frac": 0.31,
    "error_frac": 0.08,
    "cost_usd_per_mtoken": 3.25,
    "bottleneck": "attention",
    "memory": {"weights_bytes": 2.0**31, "activations_bytes": 2.0**35, "total_bytes": 40 * 2.0**30, "limit_bytes": 2.0**36},
    "why": ["nothing else that fits is faster"],
}


def job_of(model_name: str = "llama3-8b", seq_tokens: int = 2**20, gpu: str = "h100-sxm", facts: Any = None, **layout: Any) -> Job:
    """The Job of one layout; the global batch is what the layout makes it."""
    plan = ParallelPlan(**layout)
    work = TrainWorkload(seq_tokens=seq_tokens, global_batch=int(plan.dp * plan.micro_batch * plan.grad_accum))
    return make_job(model(model_name), plan, work, cluster(gpu, int(plan.n_gpus)), accelerator(gpu), facts or {})
