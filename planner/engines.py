"""What each training framework can really run: the planner searches only layouts that some framework has switches for."""

from __future__ import annotations

from dataclasses import dataclass

from ..scenarios.errors import UnknownName
from ..scenarios.hardware import Accelerator, Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.plan import CpKind, Optimizer, ParallelPlan, Recompute, Schedule, Sharding
from ..scenarios.workload import TrainWorkload


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The mainline switches of one framework, priced by the data file ``priced_as``; ``source`` says where they were read.

    Tuples list legal values of a plan's field. ``sharding`` pairs a kind with the ZeRO stages it offers; ``max_stage_with_pp`` is the
    highest of them under a pipeline. ``partial_recompute``: some layers of a stage may recompute and the others keep all.
    ``offload_together``: optimizer and parameters go to the host both or not at all. ``dense_tp_only``: no tensor parallelism of MoE
    models. ``ulysses_replicates_kv``: the all-to-all copies KV heads when there are fewer than ranks. ``target``: its emitter.
    """

    name: str
    priced_as: str
    target: str
    sharding: tuple[tuple[Sharding, tuple[int, ...]], ...]
    cp_kinds: tuple[CpKind, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    recompute: tuple[Recompute, ...] = ("none", "full")
    tp: bool = False
    ep: bool = False
    uneven_pp: bool = False
    max_stage_with_pp: int = 1
    ulysses_replicates_kv: bool = False
    partial_recompute: bool = False
    offload_optimizer: tuple[int, ...] = (0,)
    offload_params: tuple[int, ...] = (0,)
    offload_activations: tuple[int, ...] = (0,)
    tiled_mlp: tuple[int, ...] = (0,)
    fused_loss: tuple[int, ...] = (0,)
    offload_together: bool = False
    dense_tp_only: bool = False
    precisions: tuple[str, ...] = ("bf16",)
    optimizers: tuple[Optimizer, ...] = ("adamw",)
    source: str


DEEPSPEED = Engine(
    name="deepspeed",
    priced_as="deepspeed",
    target="deepspeed",
    sharding=(("zero", (0, 1, 2, 3)),),
    cp_kinds=("ulysses",),
    ulysses_replicates_kv=True,
    recompute=("none", "full", "remat"),
    partial_recompute=True,
    offload_optimizer=(0, 1),
    offload_params=(0, 1),
    offload_activations=(0, 1),
    tiled_mlp=(0, 1),
    fused_loss=(0, 1),
    precisions=("bf16", "fp16"),
    optimizers=("adamw", "lion", "sgd"),
    source="DeepSpeed 0.19: zero_optimization and sequence_parallel_size keys, UlyssesSPAttentionHF, TiledMLP; the emitted train script",
)
MEGATRON = Engine(
    name="megatron",
    priced_as="megatron-core",
    target="megatron",
    sharding=(("zero", (0, 1)),),
    cp_kinds=("zigzag", "allgather", "ulysses", "ulysses-ring"),
    schedules=("1f1b", "interleaved"),
    recompute=("none", "selective", "full"),
    tp=True,
    ep=True,
    uneven_pp=True,
    partial_recompute=True,
    offload_optimizer=(0, 1),
    precisions=("bf16", "fp16", "fp8"),
    optimizers=("adamw", "adamw-bf16", "adamw-8bit", "sgd"),
    source="Megatron-LM arguments.py and megatron-core 0.16 TransformerConfig: --cp-comm-type p2p|all_gather|a2a|a2a+p2p, "
    "--recompute-granularity, --decoder-first-pipeline-num-layers, --optimizer-cpu-offload, query groups a multiple of tp",
)
TORCHTITAN = Engine(
    name="torchtitan",
    priced_as="torchtitan",
    target="torchtitan",
    sharding=(("fsdp", (3,)), ("hsdp", (3,))),
    cp_kinds=("allgather",),
    schedules=("1f1b", "gpipe", "interleaved", "zb1p"),
    recompute=("none", "selective", "full"),
    tp=True,
    ep=True,
    max_stage_with_pp=3,
    offload_optimizer=(0, 1),
    offload_params=(0, 1),
    offload_together=True,
    fused_loss=(0, 1),
    source="torchtitan 0.3 config: --parallelism.*, --activation_checkpoint.mode; schedules 1F1B, GPipe, Interleaved1F1B, ZBVZeroBubble",
)
FSDP2 = Engine(
    name="fsdp2",
    priced_as="fsdp2",
    target="fsdp",
    sharding=(("fsdp", (3,)), ("hsdp", (3,))),
    recompute=("none", "full", "remat"),
    tp=True,
    dense_tp_only=True,
    partial_recompute=True,
    offload_optimizer=(0, 1),
    offload_params=(0, 1),
    offload_together=True,
    offload_activations=(0, 1),
    tiled_mlp=(0, 1),
    fused_loss=(0, 1),
    optimizers=("adamw", "sgd"),
    source="PyTorch 2.13 fully_shard with a device mesh, parallelize_module, and the emitted train script",
)
ENGINES = {engine.name: engine for engine in (DEEPSPEED, MEGATRON, TORCHTITAN, FSDP2)}


def engines(name: str) -> tuple[Engine, ...]:
    """The engines a scenario names: all of them for ``auto``; UnknownName if the planner has none such."""
    if name == "auto":
        return tuple(ENGINES.values())
    if name not in ENGINES:
        raise UnknownName("framework", name, [*ENGINES, "auto"])
    return (ENGINES[name],)


def why_not(engine: Engine, model: ModelSpec, cluster: Cluster, accelerator: Accelerator) -> str:
    """Why this framework cannot train this model at all; '' if it can: its emitter is asked to write the simplest plan."""
    from .emit.registry import targets
    from .emit.target import CannotExpress, make_job

    sharding, stages = engine.sharding[0]
    plan = ParallelPlan(framework=engine.name, sharding=sharding, zero_stage=stages[-1])
    work = TrainWorkload(seq_tokens=model.max_seq_tokens)
    try:
        targets()[engine.target].emit(make_job(model, plan, work, cluster.with_gpus(1, 1), accelerator, {}))
    except CannotExpress as reason:
        return str(reason)
    return ""
