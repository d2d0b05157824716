"""A parallel plan: how one training step is laid out over GPUs. Numeric fields may be arrays of candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = int | NDArray[np.int64]
"""A count, or an array of counts: one per candidate. Cost functions broadcast over both."""

CpKind = Literal["none", "ring", "zigzag", "helper", "allgather", "ulysses", "ulysses-ring"]
Schedule = Literal["1f1b", "gpipe", "interleaved", "zb1p", "dualpipe"]
Recompute = Literal["none", "selective", "full", "remat"]
Sharding = Literal["ddp", "zero", "fsdp", "hsdp"]
Optimizer = Literal["adamw", "adamw-bf16", "adamw-8bit", "lion", "sgd", "mezo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """Layout of a training step: ``n_gpus = dp * tp * pp * cp``; ``ep * expert_tp`` divides ``dp * cp * tp`` (the same ranks).

    Text fields hold one value, so a batch of candidates is one ParallelPlan whose numeric fields are equally long arrays.
    ``cp_inner`` is the Ulysses degree of the hybrid ``ulysses-ring`` (the ring degree is ``cp / cp_inner``).
    ``hsdp_group`` is the number of data ranks that share one copy under ``hsdp``. Under ``recompute = "full"``,
    ``recompute_layers`` of each stage's layers recompute (-1: all). ``offload_*`` are 0..1, the part kept in host memory.
    ``expert_tp`` shards each expert (1: experts are whole). ``layers_first`` / ``layers_last`` > 0 make the outer stages uneven.
    """

    dp: Ints = 1
    tp: Ints = 1
    pp: Ints = 1
    vpp: Ints = 1
    cp: Ints = 1
    cp_inner: Ints = 1
    ep: Ints = 1
    expert_tp: Ints = 1
    zero_stage: Ints = 1
    hsdp_group: Ints = 0
    micro_batch: Ints = 1
    grad_accum: Ints = 1
    recompute_layers: Ints = -1
    layers_first: Ints = 0
    layers_last: Ints = 0
    sequence_parallel: Ints = 1
    offload_optimizer: Ints = 0
    offload_params: Ints = 0
    offload_activations: Ints = 0
    tiled_mlp: Ints = 0
    fused_loss: Ints = 0
    cp_kind: CpKind = "none"
    schedule: Schedule = "1f1b"
    recompute: Recompute = "none"
    sharding: Sharding = "zero"
    precision: str = "bf16"
    optimizer: Optimizer = "adamw"
    attention: Literal["flash", "unfused"] = "flash"
    lora_rank: int = 0
    expandable_segments: bool = True
    framework: str = "deepspeed"
    techniques: tuple[str, ...] = ()

    @property
    def n_gpus(self) -> Ints:
        return self.dp * self.tp * self.pp * self.cp
