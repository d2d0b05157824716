"""torchtitan/run.sh: the plan as command-line overrides of a torchtitan 0.3.0 registry configuration (that version reads no TOML)."""

from __future__ import annotations

from . import launch
from .target import CannotExpress, Job, refuse

TITLE = "torchtitan overrides"
HOW = "`bash torchtitan/run.sh --hf_assets_path ...`"

FLAVORS = {
    "llama3-8b": ("llama3", "8B", "llama3_8b"),
    "llama3.1-8b": ("llama3", "8B", "llama3_8b"),
    "llama3-70b": ("llama3", "70B", "llama3_70b"),
    "llama3.1-70b": ("llama3", "70B", "llama3_70b"),
    "llama3.3-70b": ("llama3", "70B", "llama3_70b"),
    "llama3.1-405b": ("llama3", "405B", ""),
    "llama3.2-1b": ("llama3", "1B", ""),
    "llama3.2-3b": ("llama3", "3B", ""),
    "qwen3-0.6b": ("qwen3", "0.6B", "qwen3_0_6b"),
    "qwen3-1.7b": ("qwen3", "1.7B", "qwen3_1_7b"),
    "qwen3-4b": ("qwen3", "4B", ""),
    "qwen3-8b": ("qwen3", "8B", ""),
    "qwen3-14b": ("qwen3", "14B", "qwen3_14b"),
    "qwen3-32b": ("qwen3", "32B", "qwen3_32b"),
    "qwen3-30b-a3b": ("qwen3", "30B-A3B", "qwen3_30b_a3b"),
    "deepseek-v3": ("deepseek_v3", "671B", "deepseek_v3_671b"),
    "gpt-oss-20b": ("gpt_oss", "20b", "gpt_oss_20b"),
    "gpt-oss-120b": ("gpt_oss", "120b", "gpt_oss_120b"),
}
"""Model -> module and flavor of torchtitan 0.3.0's registry, and the configuration it ships that trains the flavor in bf16, if any."""

BASES = {"llama3": "llama3_8b", "qwen3": "qwen3_14b"}
"""The configuration of a module that our own starts from."""

Overrides = list[tuple[str, ...]]
SCHEDULES = {"1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B", "zb1p": "ZBVZeroBubble"}
LOGITS_CHUNK_BYTES = 2**30


def emit(job: Job) -> dict[str, str]:
    """A launcher that holds the overrides, and a configuration where the registry ships none; CannotExpress for what has no switch."""
    what = f"{job.world} ranks of torchtitan 0.3.0 on {job.nodes} node(s); add --hf_assets_path and --dataloader.dataset_path of your own"
    array = launch.bash_array("OVERRIDES", overrides(job))
    path = 'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"\n' if _own(job) else ""
    command = launch.torchrun_command(job, "-m torchtitan.train", '"${OVERRIDES[@]}"', last=checkpointing(job))
    files = {"torchtitan/run.sh": launch.HEAD.format(what=what) + launch.environment(job) + path + array + command}
    return files | ({"torchtitan/roofplan_config.py": configuration(job)} if _own(job) else {})


def overrides(job: Job) -> Overrides:
    """``--module``, ``--config`` and every override, each with its value. CUDA graphs are off: their memory is not priced."""
    check_expressible(job)
    plan = job.plan
    module, _, shipped = FLAVORS[job.model.name]
    return [
        ("--module", "roofplan_config" if _own(job) else module),
        ("--config", "plan" if _own(job) else shipped),
        ("--training.seq_len", str(job.seq_tokens)),
        ("--training.steps", "10"),
        ("--training.disable_cuda_graphs",),
        ("--training.max_norm", f"{job.gradient_clipping or 1e9:g}"),
        *_batch(job),
        *_ranks(job),
        *_pipeline(job),
        *((("--training.enable_cpu_offload",),) if plan.offload_params else ()),
        *((("--compile.enable",),) if plan.precision == "fp8" else ()),
        ("--loss.num_chunks", str(_loss_chunks(job))),
        ("--metrics.log_freq", "1"),
    ]


def configuration(job: Job) -> str:
    """A registry module with one function, ``plan``: the flavor in a shipped configuration's clothes, in float8 if the plan is."""
    module, flavor, shipped = FLAVORS[job.model.name]
    base = shipped or BASES[module]
    imports = [f"from torchtitan.models.{module} import model_registry", f"from torchtitan.models.{module}.config_registry import {base}"]
    converters = ""
    if job.plan.precision == "fp8":
        imports.insert(0, "from torchtitan.components.quantization import Float8LinearConverter")
        converters = ', converters=[Float8LinearConverter.Config(filter_fqns=["lm_head"], model_compile_enabled=True)]'
    kind = ", its linear layers in float8" if converters else ""
    return (
        f'"""The torchtitan 0.3.0 configuration of this plan: {base} with the {flavor} model{kind}."""\n\n'
        + "\n".join(imports)
        + f'\n\n\ndef plan():\n    config = {base}()\n    config.model_spec = model_registry("{flavor}"{converters})\n    return config\n'
    )


def checkpointing(job: Job) -> str:
    """The sub-command that chooses the activation checkpointing; it follows all overrides."""
    return f"activation_checkpoint:{job.plan.recompute}"


def _own(job: Job) -> bool:
    """Whether the plan needs a configuration of its own: none is shipped for the flavor, or float8 is asked for."""
    return not FLAVORS[job.model.name][2] or job.plan.precision == "fp8"


def check_expressible(job: Job) -> None:
    """CannotExpress for plans outside torchtitan's switches."""
    plan = job.plan
    known = job.model.name in FLAVORS
    refuse(
        (not known, f"torchtitan 0.3.0 has no model like {job.model.name}", "the FSDP2 script or Megatron-LM"),
        (
            plan.cp > 1 and plan.cp_kind != "allgather",
            f"cp_kind={plan.cp_kind}: its context parallelism gathers keys and values",
            "cp_kind=allgather",
        ),
        (
            plan.pp > 1 and plan.schedule not in SCHEDULES,
            f"schedule={plan.schedule}: a two-way schedule without a switch",
            "zb1p (ZBVZeroBubble)",
        ),
        (plan.sharding == "zero" and plan.zero_stage == 1, "ZeRO stage 1", "sharding=fsdp, or Megatron-LM's distributed optimizer"),
        (plan.recompute == "remat", "recompute=remat: its selective policy saves other tensors", "recompute=selective or full"),
        (plan.recompute_layers >= 0 and plan.recompute == "full", "recompute of some layers only", "recompute_layers=-1"),
        (
            bool(plan.offload_optimizer) != bool(plan.offload_params),
            "offload of part of the state: all is offloaded, or nothing",
            "offload both",
        ),
        (plan.offload_activations, "offload_activations: no switch", "train.py (DeepSpeed)"),
        (plan.tiled_mlp, "tiled_mlp: no switch", "tp, or train.py"),
        (plan.precision not in ("bf16", "fp8"), f"precision={plan.precision}: no switch", "bf16 or fp8"),
        (plan.precision == "fp8" and job.model.n_experts, "precision=fp8 of an MoE model", "bf16, or Megatron-LM"),
        (plan.optimizer != "adamw", f"optimizer={plan.optimizer}: no switch", "adamw"),
        (plan.lora_rank, f"lora_rank={plan.lora_rank}: no switch", "train.py, which uses peft"),
        (plan.attention == "unfused", "attention=unfused: no switch", "flash"),
    )


def _batch(job: Job) -> Overrides:
    """Local batch: one micro-batch, accumulated to the global batch; under a pipeline all micro-batches of a step."""
    plan = job.plan
    local = plan.micro_batch * (plan.grad_accum if plan.pp > 1 else 1)
    found: Overrides = [("--training.local_batch_size", str(local)), ("--training.global_batch_size", str(job.global_batch))]
    if plan.pp > 1:
        found.append(("--parallelism.pipeline_parallel_microbatch_size", str(plan.micro_batch)))
    return found


def _ranks(job: Job) -> Overrides:
    plan = job.plan
    dp, cp = int(plan.dp), int(plan.cp)
    replicate, shard = 1, dp
    if plan.sharding == "ddp" or (plan.sharding == "zero" and plan.zero_stage == 0):
        replicate, shard = dp, 1
    elif plan.sharding == "hsdp":
        shard = max(1, int(plan.hsdp_group) // cp)
        replicate = dp // shard
    keep = "never" if plan.sharding == "zero" and plan.zero_stage == 2 else "default"
    return [
        ("--parallelism.data_parallel_replicate_degree", str(replicate)),
        ("--parallelism.data_parallel_shard_degree", str(shard)),
        ("--parallelism.fsdp_reshard_after_forward", keep),
        ("--parallelism.tensor_parallel_degree", str(plan.tp)),
        ("--parallelism.enable_sequence_parallel" if plan.sequence_parallel else "--parallelism.no_enable_sequence_parallel",),
        ("--parallelism.context_parallel_degree", str(plan.cp)),
        ("--parallelism.expert_parallel_degree", str(plan.ep)),
        ("--parallelism.pipeline_parallel_degree", str(plan.pp)),
    ]


def _pipeline(job: Job) -> Overrides:
    """Schedule and stages. torchtitan lightens the outer stages by a number of layers; uneven plans are that number."""
    plan = job.plan
    if plan.pp == 1:
        return []
    stages = int(plan.pp * {"interleaved": plan.vpp, "zb1p": 2}.get(plan.schedule, 1))
    first, last = _less_layers(job, stages)
    per_stage = (job.model.n_layers + first + last) // stages
    return [
        ("--parallelism.pipeline_parallel_schedule", SCHEDULES[plan.schedule]),
        ("--parallelism.pipeline_parallel_layers_per_stage", str(per_stage)),
        ("--parallelism.pipeline_parallel_first_stage_less_layers", str(first)),
        ("--parallelism.pipeline_parallel_last_stage_less_layers", str(last)),
    ]


def _less_layers(job: Job, stages: int) -> tuple[int, int]:
    """How many layers fewer the first and the last stage hold than the ones between; CannotExpress if they hold more or stages differ."""
    plan, n_layers = job.plan, job.model.n_layers
    middle = stages - 2
    first, last = int(plan.layers_first), int(plan.layers_last)
    if not first and not last:
        if n_layers % stages:
            raise CannotExpress(f"{n_layers} layers over {stages} stages without layers_first and layers_last", "a divisor, or Megatron-LM")
        return 0, 0
    between = (n_layers - first - last) // middle if middle else max(first, last)
    if (middle and (n_layers - first - last) % middle) or between < max(first, last) or stages != plan.pp:
        raise CannotExpress(f"outer stages of {first} and {last} layers of {n_layers}: it only lightens equal stages", "Megatron-LM")
    return between - first, between - last


def _loss_chunks(job: Job) -> int:
    """Pieces of the loss: 1, or under ``fused_loss`` so many that a piece's fp32 logits are at most 1 GiB."""
    logits_bytes = 4 * job.plan.micro_batch * (job.seq_tokens // job.plan.cp) * job.model.vocab / job.plan.tp
    return max(2, int(-(-logits_bytes // LOGITS_CHUNK_BYTES))) if job.plan.fused_loss else 1
