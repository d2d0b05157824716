"""ds_config.json: ZeRO, offload, precision, activation checkpointing and Ulysses keys, checked against the keys DeepSpeed 0.19.8 reads."""

from __future__ import annotations

import difflib
from typing import Any

from ...scenarios.errors import BadInput
from .target import CannotExpress, Job, to_json

TITLE = "DeepSpeed configuration"
HOW = "read by `train.py`; also by any script of yours through `deepspeed.initialize(config=...)`"

_TOP_LEVEL = """
    activation_checkpointing aio autotuning bf16 checkpoint comms_logger communication_data_type compile csv_monitor
    data_efficiency data_types dataloader_drop_last disable_allgather dump_state expert_parallel flops_profiler fp16
    gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor hybrid_engine memory_breakdown
    optimizer pipeline prescale_gradients scheduler seq_parallel_communication_data_type sequence_parallel_size steps_per_print
    tensor_parallel tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu
    use_data_before_expert_parallelism wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization
"""
TOP_LEVEL_KEYS = frozenset(_TOP_LEVEL.split())
"""Top-level keys DeepSpeed 0.19.8 reads (``runtime/config.py``, ``runtime/constants.py``); any other it silently ignores."""

_CHECKPOINTING = """
    contiguous_memory_optimization cpu_checkpointing number_checkpoints partition_activations profile synchronize_checkpoint_boundary
"""
CHECKPOINTING_KEYS = frozenset(_CHECKPOINTING.split())
"""Keys of ``activation_checkpointing`` (``runtime/activation_checkpointing/config.py``); any other is silently ignored too."""


def emit(job: Job) -> dict[str, str]:
    """``ds_config.json``; CannotExpress for what DeepSpeed's ZeRO engine with Ulysses has no key for."""
    config = config_of(job)
    check_keys(config)
    return {"ds_config.json": to_json(config)}


def check_keys(config: dict[str, Any]) -> None:
    """BadInput at the first key DeepSpeed would silently ignore."""
    _refuse_unknown("", config, TOP_LEVEL_KEYS)
    _refuse_unknown("activation_checkpointing.", config.get("activation_checkpointing", {}), CHECKPOINTING_KEYS)


def check_expressible(job: Job) -> None:
    """CannotExpress unless the plan is ZeRO with or without Ulysses, in a precision and an optimizer DeepSpeed has keys for."""
    plan = job.plan
    if plan.tp > 1 or plan.pp > 1 or plan.ep > 1:
        axes = " ".join(f"{a}={getattr(plan, a)}" for a in ("tp", "pp", "ep") if getattr(plan, a) > 1)
        raise CannotExpress(f"{axes}: this target shards by ZeRO and Ulysses only", "Megatron-LM, torchtitan, or the FSDP2 script for tp")
    if plan.cp > 1 and plan.cp_kind != "ulysses":
        raise CannotExpress(f"cp_kind={plan.cp_kind}: DeepSpeed's sequence parallelism is Ulysses", "cp_kind=ulysses, or Megatron-LM")
    if plan.cp > 1 and job.model.n_heads % plan.cp:
        raise CannotExpress(f"cp={plan.cp} does not divide n_heads={job.model.n_heads}, which Ulysses needs", "a divisor of the head count")
    kv = job.model.n_kv_heads
    if plan.cp > 1 and kv % plan.cp and plan.cp % kv:
        raise CannotExpress(f"cp={plan.cp} neither divides n_kv_heads={kv} nor is a multiple of it", "a power of two")
    if plan.sharding == "hsdp":
        raise CannotExpress("sharding=hsdp: MiCS is not wired into Hugging Face models", "sharding=fsdp, or the FSDP2 script")
    if plan.precision not in ("bf16", "fp16", "fp32"):
        raise CannotExpress(f"precision={plan.precision}: no DeepSpeed key", "bf16, or Megatron-LM with Transformer Engine")
    if plan.optimizer in ("mezo", "adamw-8bit"):
        nearest = "sgd" if plan.optimizer == "mezo" else "lion, whose state is half of AdamW's"
        raise CannotExpress(f"optimizer={plan.optimizer} is research-only here: no DeepSpeed key", f"optimizer={nearest}")
    if plan.optimizer == "adamw-bf16":
        raise CannotExpress("optimizer=adamw-bf16: DeepSpeed keeps bf16 moments only with bf16 master weights", "adamw, or Megatron-LM")
    _check_offload(job)


def stage_of(job: Job) -> int:
    """The ZeRO stage: 0 for ddp, 3 for fsdp, else the plan's own."""
    return {"ddp": 0, "fsdp": 3}.get(job.plan.sharding, int(job.plan.zero_stage))


def config_of(job: Job) -> dict[str, Any]:
    """The configuration as a dict.

    ``train_batch_size = dp · micro_batch · grad_accum`` (sequence ranks share a sample). ``gradient_clipping`` is always present:
    DeepSpeed clips at 1.0 when it is absent.
    """
    check_expressible(job)
    plan = job.plan
    config: dict[str, Any] = {
        "train_batch_size": job.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.grad_accum,
        "gradient_clipping": job.gradient_clipping,
        "steps_per_print": 1000000,
        "zero_optimization": _zero(job),
        **_precision(job),
        **_optimizer(job),
    }
    if job.model.position == "rope":
        config["data_types"] = {"keep_in_fp32_modules": ["rotary_emb"]}
    if plan.recompute == "full":
        offload = bool(plan.offload_activations)
        config["activation_checkpointing"] = {"partition_activations": False, "cpu_checkpointing": offload}
    if plan.cp > 1:
        config["sequence_parallel_size"] = plan.cp
        config["seq_parallel_communication_data_type"] = plan.precision
    return config


def _zero(job: Job) -> dict[str, Any]:
    plan, hidden, stage = job.plan, job.model.hidden, stage_of(job)
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero |= {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": hidden * hidden}
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
            "stage3_param_persistence_threshold": 10 * hidden,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if plan.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if plan.offload_optimizer < 1:
            zero["offload_optimizer"]["ratio"] = float(plan.offload_optimizer)
    if plan.offload_params:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def _check_offload(job: Job) -> None:
    plan, stage = job.plan, stage_of(job)
    if plan.offload_params and stage != 3:
        raise CannotExpress(f"offload_params with ZeRO stage {stage}: DeepSpeed offloads parameters under stage 3 only", "zero_stage=3")
    if 0 < plan.offload_params < 1:
        raise CannotExpress(f"offload_params={plan.offload_params}: DeepSpeed offloads all parameters or none", "offload_params=1")
    if plan.offload_optimizer and not stage:
        raise CannotExpress("offload_optimizer without ZeRO", "zero_stage=1")
    if 0 < plan.offload_optimizer < 1 and stage != 3:
        raise CannotExpress(f"offload_optimizer={plan.offload_optimizer} under stage {stage}: a ratio needs stage 3", "offload_optimizer=1")


def _precision(job: Job) -> dict[str, Any]:
    if job.plan.precision == "fp16":
        return {"fp16": {"enabled": True}}
    if job.plan.precision == "fp32":
        return {}
    return {"bf16": {"enabled": True}}


def _optimizer(job: Job) -> dict[str, Any]:
    lr = job.learning_rate
    if job.plan.optimizer == "sgd":
        untested = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
        return {"optimizer": {"type": "SGD", "params": {"lr": lr}}, **untested}
    if job.plan.optimizer == "lion":
        return {"optimizer": {"type": "Lion", "params": {"lr": lr, "betas": [0.9, 0.99], "weight_decay": 0.0}}}
    return {"optimizer": {"type": "AdamW", "params": {"lr": lr, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}}}


def _refuse_unknown(where: str, table: dict[str, Any], legal: frozenset[str]) -> None:
    for key in table:
        if key not in legal:
            near = difflib.get_close_matches(key, legal, n=3) or sorted(legal)[:4]
            raise BadInput(f"DeepSpeed 0.19.8 has no key {where}{key!r} and would ignore it; nearest: {', '.join(near)}")
