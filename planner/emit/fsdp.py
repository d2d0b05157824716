"""train_fsdp2.py: the plan in plain PyTorch (FSDP2, tensor parallelism, HSDP), with its launcher."""

from __future__ import annotations

from . import launch, script
from .target import CannotExpress, Job

TITLE = "plain PyTorch: FSDP2 and tensor parallelism"
HOW = "`bash launch_fsdp2.sh`"


def emit(job: Job) -> dict[str, str]:
    """train_fsdp2.py, its launcher and what it reads; CannotExpress outside FSDP2 × TP."""
    check_expressible(job)
    files = script.shared_files(job)
    launcher = launch.torchrun(job, "train_fsdp2.py")
    return {"train_fsdp2.py": script.template("train_fsdp2.py"), "launch_fsdp2.sh": launcher, **files}


def check_expressible(job: Job) -> None:
    """CannotExpress unless the plan is full sharding over data ranks, with or without tensor parallelism, on torch's own optimizers."""
    plan = job.plan
    if plan.cp > 1:
        raise CannotExpress(f"cp={plan.cp}: this script splits the sequence by tp only", "train.py, torchtitan or Megatron-LM")
    if plan.pp > 1 or plan.ep > 1:
        raise CannotExpress(f"pp={plan.pp} ep={plan.ep}: this script has data and tensor ranks only", "torchtitan or Megatron-LM")
    if plan.dp > 1 and (plan.sharding == "ddp" or (plan.sharding == "zero" and plan.zero_stage < 2)):
        raise CannotExpress(
            f"sharding={plan.sharding} stage {plan.zero_stage}: FSDP2 shards gradients too", "train.py, which is ZeRO 0 to 3"
        )
    if plan.sharding == "hsdp" and plan.hsdp_group < 1:
        raise CannotExpress("sharding=hsdp without hsdp_group", "hsdp_group = GPUs that share one copy")
    if bool(plan.offload_optimizer) != bool(plan.offload_params) or 0 < plan.offload_params < 1:
        raise CannotExpress("offload of part of the state: FSDP2 offloads all of it", "offload all, or train.py")
    if plan.precision not in ("bf16", "fp32"):
        raise CannotExpress(f"precision={plan.precision}", "bf16, or torchtitan's float8")
    if plan.optimizer not in ("adamw", "sgd"):
        raise CannotExpress(f"optimizer={plan.optimizer} is not wired into this script", "adamw or sgd")
    if plan.lora_rank:
        raise CannotExpress(f"lora_rank={plan.lora_rank}", "train.py, which uses peft")
    script.check_recompute(job)
    if plan.tp > 1:
        _check_tensor_parallel(job)


def _check_tensor_parallel(job: Job) -> None:
    plan, model = job.plan, job.model
    if model.n_kv_heads % plan.tp:
        raise CannotExpress(f"tp={plan.tp} does not divide n_kv_heads={model.n_kv_heads}", "a divisor of it")
    if job.seq_tokens % plan.tp:
        raise CannotExpress(f"tp={plan.tp} does not divide seq_tokens={job.seq_tokens}", "a sequence that is a multiple of tp")
    if model.n_experts:
        raise CannotExpress(f"tp={plan.tp} of an MoE model", "torchtitan or Megatron-LM")
    if not plan.sequence_parallel:
        raise CannotExpress("tp without sequence_parallel", "sequence_parallel=1, which moves no more bytes and saves memory")
    if plan.attention == "unfused":
        raise CannotExpress("attention=unfused under tp", "attention=flash")
