"""arctictraining/alst.yml: the plan for ArcticTraining 0.8.0, where Arctic Long Sequence Training (ALST) comes from."""

from __future__ import annotations

from typing import Any

from . import deepspeed
from .target import Job, refuse, to_yaml

TITLE = "ArcticTraining (ALST) recipe"
HOW = "`cd arctictraining && arctic_training alst.yml`"


def emit(job: Job) -> dict[str, str]:
    """One recipe, in a folder of its own: ArcticTraining would import a train.py lying beside it. CannotExpress as in the code below."""
    note = (
        "# arctic_training alst.yml    (ArcticTraining 0.8.0; needs flash-attn, and liger-kernel where model.type is liger)\n"
        "# The sources below are a stand-in: name your own.\n"
    )
    return {"arctictraining/alst.yml": note + to_yaml(recipe(job))}


def recipe(job: Job) -> dict[str, Any]:
    """The recipe as a dict; batch size, precision and Ulysses keys of DeepSpeed are filled in by ArcticTraining itself."""
    check_expressible(job)
    plan = job.plan
    config = deepspeed.config_of(job)
    passed = ("zero_optimization", "gradient_clipping", "seq_parallel_communication_data_type")
    data_rows = 10 * job.global_batch
    return {
        "type": "causal",
        "micro_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.grad_accum,
        "sequence_parallel_size": plan.cp,
        "tiled_mlp_compute": bool(plan.tiled_mlp),
        "activation_checkpoint_cpu_offload": bool(plan.offload_activations),
        "exit_iteration": 10,
        "min_iterations": 10,
        "model": {
            "type": "liger" if plan.fused_loss else "huggingface",
            "name_or_path": job.model.hf_ids[0],
            "dtype": "bf16",
            "attn_implementation": "flash_attention_2",
            "disable_activation_checkpoint": plan.recompute == "none",
        },
        "data": {
            "sources": [{"type": "huggingface_causal", "name_or_path": "HuggingFaceFW/fineweb", "split": f"train[:{1000 * data_rows}]"}],
            "cache_dir": "data-cache",
            "max_length": job.seq_tokens,
        },
        "optimizer": {
            "type": "cpu_adam" if plan.offload_optimizer else "fused_adam",
            "learning_rate": job.learning_rate,
            "betas": [0.9, 0.95],
            "weight_decay": 0.0,
        },
        "deepspeed": {key: config[key] for key in passed if key in config},
        "logger": {"level": "INFO", "output_dir": "logs"},
    }


def check_expressible(job: Job) -> None:
    """CannotExpress for plans outside ArcticTraining's switches, and where its loss would train wrongly."""
    deepspeed.check_expressible(job)
    plan, stage = job.plan, deepspeed.stage_of(job)
    refuse(
        (not job.model.hf_ids, f"{job.model.name} has no Hugging Face id to load", "train.py"),
        (
            plan.cp > 1 and stage < 3,
            f"Ulysses under ZeRO stage {stage}: DeepSpeed 0.19.8 then sums gradients over sequence ranks",
            "zero_stage=3",
        ),
        (plan.cp > 1 and not plan.fused_loss, "an untiled loss under Ulysses: its loss is always tiled", "fused_loss=1"),
        (plan.recompute not in ("none", "full"), f"recompute={plan.recompute}", "recompute=full, or train.py"),
        (plan.recompute == "full" and plan.recompute_layers >= 0, "recompute of some layers only", "recompute_layers=-1, or train.py"),
        (0 < plan.offload_activations < 1, "offload of part of the activations", "offload_activations=1, or train.py"),
        (plan.offload_activations and plan.recompute == "none", "offload of activations without recompute", "recompute=full"),
        (plan.precision != "bf16", f"precision={plan.precision}", "bf16"),
        (plan.optimizer != "adamw", f"optimizer={plan.optimizer}", "adamw"),
        (plan.attention == "unfused", "attention=unfused", "flash"),
        (plan.lora_rank, f"lora_rank={plan.lora_rank}: adapters were not checked with it", "train.py, which uses peft"),
    )
