"""What each source of training runs leaves unsaid: one rule per source, applied to all of its rows alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..scenarios.plan import Recompute

GB, GIB = 1e9, 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRule:
    """How rows whose source starts with ``prefix`` are read where a cell is empty; never per row.

    ``cluster`` is used when the interconnect column names none. ``zero_stage`` and ``sharding`` hold for an empty sharding cell,
    ``attention`` for an empty attention cell. ``seq_parallel``: None = on whenever tp > 1. ``flops`` says how TFLOPs become seconds
    when a row states no time: ``hardware`` counts the recomputed forward (Narayanan et al. 2021, §5.1). ``tuned``: micro-batch and
    interleaving are not stated but the authors tuned them: take the fastest choice by our own model that fits. ``gb`` is the byte of
    the memory column; ``measures`` what it counts: ``allocated`` tensors, ``reserved`` blocks, or the whole ``device``. ``computed``:
    memory printed is a formula of the source, so it says nothing about what fits.
    """

    prefix: str
    framework: str
    why: str
    cluster: str = ""
    sharding: str = "zero1"
    recompute: Recompute = "none"
    attention: Literal["flash", "unfused"] = "flash"
    seq_parallel: int | None = None
    precision: str = "bf16"
    vocab: int = 0
    seq_tokens: int = 0
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    tied: bool = False
    bias: bool = False
    flops: Literal["", "hardware"] = ""
    tuned: bool = False
    gb: float = GB
    measures: Literal["allocated", "reserved", "device"] = "reserved"
    computed: bool = False
    min_tokens_per_s: float = 0.0


GPT = {"position": "learned", "norm": "layernorm", "tied": True, "bias": True}

RULES: tuple[SourceRule, ...] = (
    SourceRule(
        prefix="HF-ultrascale-nanotron",
        framework="nanotron",
        cluster="hf-cluster",
        sharding="none",
        seq_parallel=1,
        gb=GIB,
        min_tokens_per_s=100,
        why="no recomputation and sequence parallelism: memory falls as 1/tp and grows with the full activation set; "
        "under 100 tokens/s the printed integer is too coarse for a step time",
    ),
    SourceRule(
        prefix="llm-foundry",
        framework="llm-foundry",
        sharding="fsdp",
        position="learned",
        norm="layernorm",
        tied=True,
        why="MPT: tied embeddings, no biases; the published parameter count grows with the sequence, so positions are learned",
    ),
    SourceRule(
        prefix="vTrain",
        framework="megatron-deepspeed",
        cluster="vtrain",
        sharding="none",
        recompute="full",
        attention="unfused",
        seq_parallel=0,
        precision="fp16",
        vocab=51200,
        gb=GIB,
        **GPT,  # type: ignore[arg-type]
        why="Megatron-DeepSpeed of 2022 without flash attention; vocabulary not given, GPT-2's padded to 51,200",
    ),
    SourceRule(
        prefix="BigScience",
        framework="megatron-deepspeed",
        cluster="bigscience",
        recompute="full",
        attention="unfused",
        seq_parallel=0,
        gb=GIB,
        **GPT,  # type: ignore[arg-type]
        why="the same code base on Jean Zay, ZeRO-1, activation checkpointing throughout the logbook",
    ),
    SourceRule(
        prefix="Sailor",
        framework="sailor",
        sharding="none",
        attention="unfused",
        seq_parallel=0,
        precision="fp16",
        seq_tokens=2048,
        measures="allocated",
        **GPT,  # type: ignore[arg-type]
        why="Megatron-DeepSpeed fork; sequence not in the file: both models' maximum, 2,048",
    ),
    SourceRule(
        prefix="Megatron-SC21",
        framework="megatron-2021",
        cluster="selene",
        sharding="none",
        recompute="full",
        attention="unfused",
        seq_parallel=0,
        precision="fp16",
        flops="hardware",
        tuned=True,
        **GPT,  # type: ignore[arg-type]
        why="time from hardware TFLOPs; micro-batch and interleaving not in the tables, the paper tunes both",
    ),
    SourceRule(
        prefix="Korthikanti2022-Fig1",
        framework="megatron-2022",
        cluster="selene",
        sharding="none",
        attention="unfused",
        seq_parallel=0,
        precision="fp16",
        gb=GIB,
        measures="allocated",
        computed=True,
        **GPT,  # type: ignore[arg-type]
        why="fused softmax but no flash attention; memory is the paper's formula of tensors, in GiB",
    ),
    SourceRule(
        prefix="Korthikanti2022",
        framework="megatron-2022",
        cluster="selene",
        sharding="none",
        attention="unfused",
        seq_parallel=0,
        precision="fp16",
        gb=GIB,
        measures="allocated",
        **GPT,  # type: ignore[arg-type]
        why="fused softmax but no flash attention; memory is the paper's formula of tensors, in GiB",
    ),
    SourceRule(
        prefix="DLPerf",
        framework="megatron-2021",
        cluster="dlperf",
        sharding="none",
        recompute="full",
        attention="unfused",
        seq_parallel=0,
        precision="fp16",
        **GPT,  # type: ignore[arg-type]
        why="Megatron-LM of 2020-21 on V100: activation checkpointing on in its scripts",
    ),
    SourceRule(
        prefix="NeMo-24.07",
        framework="nemo-24.07",
        cluster="dgx-h100",
        precision="fp8",
        why="distributed optimizer (ZeRO-1) is the recipes' default",
    ),
    SourceRule(prefix="NeMo-longseq", framework="nemo-24.07", cluster="dgx-h100", precision="fp8", why="same container family"),
    SourceRule(prefix="NeMo", framework="nemo-24.07", cluster="dgx-h100", why="nearest profile of the vendor's framework"),
    SourceRule(prefix="AutoModel", framework="fsdp2", cluster="dgx-h100", sharding="fsdp", why="NeMo AutoModel trains with FSDP2"),
    SourceRule(prefix="MLPerf", framework="nemo-24.07", why="the submissions run NeMo; distributed optimizer"),
    SourceRule(
        prefix="Megatron-Bridge", framework="megatron-bridge", measures="allocated", why="distributed optimizer is the recipes' default"
    ),
    SourceRule(
        prefix="Megatron-LM-llama",
        framework="megatron-bridge",
        precision="fp8",
        cluster="dgx-h100",
        why="core r0.12 with Transformer Engine",
    ),
    SourceRule(
        prefix="Megatron-LM-CI",
        framework="megatron-core",
        measures="allocated",
        seq_parallel=0,
        norm="layernorm",
        position="learned",
        why="byte-exact allocated tensors of the logging rank",
    ),
    SourceRule(
        prefix="ALST",
        framework="deepspeed-alst",
        cluster="alst-aws",
        sharding="zero3",
        recompute="full",
        gb=GIB,
        measures="device",
        why="recipes' comments quote nvidia-smi; optimizer always on the host",
    ),
    SourceRule(
        prefix="torchtitan",
        framework="torchtitan",
        sharding="fsdp",
        gb=GIB,
        recompute="selective",
        why="FSDP2; op-level selective checkpointing is its default",
    ),
    SourceRule(prefix="roofplan-deepspeed", framework="deepspeed", gb=GIB, why="what an emitted train.py measured: reserved memory in GiB"),
    SourceRule(prefix="roofplan-fsdp2", framework="fsdp2", gb=GIB, why="what an emitted train_fsdp2.py measured: reserved memory in GiB"),
    SourceRule(prefix="", framework="megatron-core", why="source without a profile: current Megatron-Core with the distributed optimizer"),
)


def rule_of(source: str) -> SourceRule:
    """The first rule whose prefix starts this source's name; the last rule takes any."""
    return next(rule for rule in RULES if source.lower().startswith(rule.prefix.lower()))
