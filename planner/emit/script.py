"""train.py with its parts.py, plan.json and config.json: the script that honours a DeepSpeed plan in full."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from typing import Any

from . import deepspeed, hfconfig
from .target import CannotExpress, Job, to_json

TITLE = "training script on DeepSpeed (also runs tiny, on a CPU)"
HOW = "`torchrun --nproc_per_node 2 train.py --tiny` tries it on a CPU; `--help` lists its options"

_COLUMNS = (
    "id source source_url model layers hidden heads kv_heads ffn vocab gated_mlp num_experts top_k moe_ffn shared_experts params_b "
    "gpu num_gpus gpus_per_node interconnect tp pp vpp cp cp_kind ep dp sharding seq_parallel micro_batch global_batch_seqs seq_len "
    "precision recompute offload attention tflops_per_gpu mfu tokens_per_s_per_gpu step_time_s peak_mem_gb notes"
)
TRUTH_COLUMNS = tuple(_COLUMNS.split())
"""Columns of a measured training run, as ``roofplan validate --training`` reads them."""


def emit(job: Job) -> dict[str, str]:
    """train.py, parts.py, plan.json and config.json; CannotExpress where DeepSpeed or the model family sets the limit."""
    deepspeed.check_expressible(job)
    check_recompute(job)
    return {"train.py": template("train.py"), **shared_files(job)}


def check_recompute(job: Job) -> None:
    """CannotExpress for recomputing an unfused attention only; with flash attention ``selective`` is what the kernel does anyway."""
    if job.plan.recompute == "selective" and job.plan.attention == "unfused":
        raise CannotExpress("recompute=selective of an unfused attention", "attention=flash, whose kernel recomputes by itself")
    if job.plan.attention == "unfused" and job.plan.cp > 1:
        raise CannotExpress("attention=unfused with Ulysses, which refuses masks of quadratic size", "attention=flash")


def shared_files(job: Job) -> dict[str, str]:
    """What both training scripts read: parts.py, plan.json and config.json."""
    config = hfconfig.config_of(job.model, job.seq_tokens)
    return {"parts.py": template("parts.py"), "plan.json": to_json(plan_json(job)), "config.json": to_json(config)}


def template(name: str) -> str:
    """The text of a file of ``templates/``."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


def plan_json(job: Job) -> dict[str, Any]:
    """The plan as the scripts read it: layout, workload, cluster, prediction and the row a measurement completes."""
    memory = job.facts.get("memory", {})
    reserved = memory.get("total_bytes", 0.0) - memory.get("context_bytes", 0.0)
    plan = dataclasses.asdict(job.plan)
    plan["zero_stage"] = deepspeed.stage_of(job)
    return {
        "model": job.model.name,
        "cluster": {"gpu": job.cluster.gpu, "n_gpus": job.world, "gpus_per_node": job.ranks_per_node},
        "workload": {"seq_tokens": job.seq_tokens, "global_batch": job.global_batch},
        "training": {"learning_rate": job.learning_rate, "gradient_clipping": job.gradient_clipping},
        "plan": plan,
        "predicted": {
            "step_time_s": job.facts.get("step_time_s"),
            "peak_gib": reserved / 2**30 if reserved else None,
            "tokens_per_s_per_gpu": job.facts.get("tokens_per_s_per_gpu"),
            "error_frac": job.facts.get("error_frac"),
        },
        "truth_row": truth_row(job),
    }


def truth_row(job: Job) -> dict[str, Any]:
    """One row of measured runs, all but what the run itself measures."""
    model, plan = job.model, job.plan
    stage = deepspeed.stage_of(job)
    offloads = [name for name in ("optimizer", "params", "activations") if getattr(plan, f"offload_{name}")]
    notes = [f"framework={plan.framework}", *(name for name in ("tiled_mlp", "fused_loss") if getattr(plan, name)), "memory in GiB"]
    row: dict[str, Any] = dict.fromkeys(TRUTH_COLUMNS, "")
    row |= {
        "id": "measured", "source": f"roofplan-{plan.framework}", "model": model.name, "layers": model.n_layers, "hidden": model.hidden,
        "heads": model.n_heads, "kv_heads": model.n_kv_heads, "ffn": model.ffn_hidden, "vocab": model.vocab,
        "gated_mlp": int(model.gated_mlp), "num_experts": model.n_experts, "gpu": job.cluster.gpu, "num_gpus": job.world,
        "gpus_per_node": job.ranks_per_node, "tp": plan.tp, "pp": plan.pp, "vpp": plan.vpp, "cp": plan.cp, "cp_kind": plan.cp_kind,
        "ep": plan.ep, "dp": plan.dp, "sharding": f"zero{stage}" if stage and plan.sharding in ("ddp", "zero") else plan.sharding,
        "seq_parallel": int(plan.sequence_parallel and plan.tp > 1), "micro_batch": plan.micro_batch,
        "global_batch_seqs": job.global_batch, "seq_len": job.seq_tokens, "precision": plan.precision, "recompute": plan.recompute,
        "offload": "+".join(offloads) or "none", "attention": plan.attention,
        "notes": "; ".join(notes),
    }  # fmt: skip
    if model.n_experts:
        row |= {"top_k": model.top_k, "moe_ffn": model.moe_ffn_hidden, "shared_experts": model.n_shared_experts}
    return row
