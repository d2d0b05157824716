"""accelerate.yaml: ``accelerate launch`` for train.py (DeepSpeed) or, where that cannot be, for a Hugging Face script under FSDP2."""

from __future__ import annotations

from typing import Any

from . import deepspeed, fsdp, script
from .hfconfig import family
from .target import CannotExpress, Job, to_yaml

TITLE = "accelerate configuration"
HOW = "`accelerate launch --config_file accelerate.yaml train.py`; under FSDP2 a Hugging Face Trainer script of yours"


def emit(job: Job) -> dict[str, str]:
    """accelerate.yaml; CannotExpress if the plan is neither DeepSpeed's nor FSDP2's."""
    return {"accelerate.yaml": "# accelerate 1.15\n" + to_yaml(config_of(job))}


def config_of(job: Job) -> dict[str, Any]:
    """The configuration as a dict: DeepSpeed by reference to ds_config.json, or FSDP2 with its mesh."""
    try:
        script.emit(job)
        return {**_machines(job), "distributed_type": "DEEPSPEED", "deepspeed_config": _deepspeed(job)}
    except CannotExpress as by_deepspeed:
        try:
            fsdp.check_expressible(job)
            _check_plain(job)
        except CannotExpress as by_fsdp:
            raise CannotExpress(f"neither DeepSpeed ({by_deepspeed.what}) nor FSDP2 ({by_fsdp.what})", by_deepspeed.nearest) from None
    return {**_machines(job), "distributed_type": "FSDP", "mixed_precision": _precision(job), "fsdp_config": _fsdp(job), **_mesh(job)}


def _check_plain(job: Job) -> None:
    """FSDP2 by configuration alone has none of the scripts' memory options."""
    plan = job.plan
    found = [name for name in ("offload_activations", "tiled_mlp", "fused_loss") if getattr(plan, name)]
    found += ["recompute=remat"] if plan.recompute == "remat" else []
    if found:
        raise CannotExpress(f"{', '.join(found)}: no key", "the FSDP2 script")
    family(job.model)


def _machines(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": job.nodes,
        "num_processes": job.world,
        "machine_rank": 0,
        "main_training_function": "main",
        "use_cpu": False,
    }
    if job.nodes > 1:
        found |= {"main_process_ip": "node0", "main_process_port": 29500, "same_network": True}
    return found


def _deepspeed(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = {"deepspeed_config_file": "ds_config.json", "zero3_init_flag": deepspeed.stage_of(job) == 3}
    return found | ({"deepspeed_multinode_launcher": "standard"} if job.nodes > 1 else {})


def _precision(job: Job) -> str:
    return "bf16" if job.plan.precision == "bf16" else "no"


def _fsdp(job: Job) -> dict[str, Any]:
    plan = job.plan
    layer = family(job.model)[1].replace("ForCausalLM", "DecoderLayer")
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": layer,
        "fsdp_reshard_after_forward": plan.sharding in ("fsdp", "hsdp") or plan.zero_stage == 3,
        "fsdp_offload_params": bool(plan.offload_params),
        "fsdp_activation_checkpointing": plan.recompute == "full",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
    }


def _mesh(job: Job) -> dict[str, Any]:
    plan = job.plan
    shard = int(plan.hsdp_group) if plan.sharding == "hsdp" else int(plan.dp)
    if plan.tp == 1 and shard == plan.dp:
        return {}
    sizes = {"dp_replicate_size": plan.dp // shard, "dp_shard_size": shard, "tp_size": plan.tp}
    return {"parallelism_config": {f"parallelism_config_{key}": size for key, size in sizes.items()}}
