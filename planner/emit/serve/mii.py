"""deepspeed-mii/: serve.py, a persistent DeepSpeed-MII deployment (Dynamic SplitFuse) with an HTTP port."""

from __future__ import annotations

from typing import Any

from ....scenarios.serving import EnginePlan
from ..hfconfig import family
from ..script import template
from ..target import refuse, to_json
from .job import ROUTER_PORT, ServeJob, limits

TITLE = "DeepSpeed-MII"
VERSION = "0.3.3"

FAMILIES = ("llama", "mixtral", "qwen2")
"""Families of the emitted configurations that DeepSpeed 0.19.8's ragged engine has a policy for."""


def how(job: ServeJob) -> str:
    """How to run it."""
    return "`python3 deepspeed-mii/serve.py`"


def emit(job: ServeJob) -> dict[str, str]:
    """serve.py and the settings it reads; CannotExpress for what MII has no setting for."""
    check_expressible(job)
    model = job.model.hf_ids[0] if job.model.hf_ids and not job.needed_format(()) else ""
    settings = {"mii": VERSION, "model": model, "serve": mii_config(job, job.deployment.plan)}
    return {"deepspeed-mii/serve.py": template("serve_mii.py"), "deepspeed-mii/settings.json": to_json(settings)}


def check_expressible(job: ServeJob) -> None:
    """CannotExpress unless the plan is tensor parallelism in 16 bits with SplitFuse on one node, for a family the engine knows."""
    plan = job.deployment.plan
    nearest = "vLLM or SGLang"
    refuse(
        (job.is_split, "prefill on replicas of its own", nearest),
        (plan.pp > 1 or plan.dp > 1 or plan.ep > 1 or plan.cp > 1, "pp, dp, ep or cp: its ragged engine shards by tp only", nearest),
        (plan.attention_ffn, "attention apart from FFN", nearest),
        (job.cluster.n_nodes > 1, "several nodes", nearest),
        (plan.weight_dtype not in ("bf16", "fp16") or plan.experts_in != plan.weight_dtype, f"weights in {plan.weight_dtype}", nearest),
        (plan.kv_dtype not in ("bf16", "fp16"), f"kv_dtype={plan.kv_dtype}", nearest),
        (plan.prefix_cache or plan.kv_tiers, "a prefix cache or KV tiers", nearest),
        (plan.speculation, "speculation", nearest),
        (plan.policy not in ("", "splitfuse", "sarathi", "vllm-v1"), f"policy={plan.policy}", "policy=splitfuse"),
        (plan.preemption == "swap", "preemption by swapping", nearest),
        (job.rope_factor > 1, "rope scaling", nearest),
    )
    kind, _ = family(job.model)
    refuse((kind not in FAMILIES, f"the {kind} family, which its ragged engine has no policy for", nearest))


def mii_config(job: ServeJob, plan: EnginePlan) -> dict[str, Any]:
    """Keyword arguments of ``mii.serve``: tensor width, replicas, and the state manager's limits."""
    limit = limits(job, plan)
    state = {
        "max_tracked_sequences": limit.max_num_seqs,
        "max_ragged_sequence_count": limit.max_num_seqs,
        "max_ragged_batch_size": max(limit.token_budget, limit.max_num_seqs),
        "max_context": job.context_tokens,
    }
    return {
        "deployment_name": job.model.name,
        "tensor_parallel": plan.tp,
        "replica_num": job.deployment.n_replicas,
        "max_length": job.context_tokens,
        "inference_engine_config": {"state_manager": state},
        "enable_restful_api": True,
        "restful_api_port": ROUTER_PORT,
    }
