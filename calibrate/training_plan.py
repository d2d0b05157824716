"""Turns a published training run into what the cost model prices: model, layout, workload and where it ran."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..scenarios import registry
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.plan import CpKind, ParallelPlan, Recompute, Schedule, Sharding
from ..scenarios.workload import TrainWorkload
from .training_model import CannotPriceError, model_of
from .training_published import published_step_s
from .training_rows import TrainingRun
from .training_sources import SourceRule, rule_of

SHARDING: dict[str, tuple[Sharding, int]] = {
    "none": ("ddp", 0),
    "zero1": ("zero", 1),
    "distopt": ("zero", 1),
    "zero2": ("zero", 2),
    "zero3": ("zero", 3),
    "fsdp": ("fsdp", 3),
    "hsdp": ("hsdp", 3),
}
CP_KINDS: dict[str, CpKind] = {
    "ring": "zigzag",
    "p2p": "zigzag",
    "zigzag": "zigzag",
    "ulysses": "ulysses",
    "a2a": "ulysses",
    "allgather": "allgather",
    "all_gather": "allgather",
    "a2a+p2p": "ulysses-ring",
    "none": "zigzag",
    "": "zigzag",
}
"""Published words -> kinds. Megatron's ring balances the causal mask as zigzag; an unnamed one is taken as such."""
PRECISIONS = ("nvfp4", "mxfp8", "fp8", "fp16", "bf16", "fp32", "tf32")
"""Words looked for in the precision cell, the most special first: ``fp8-cs`` is fp8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run ready to price. ``published_step_s`` / ``published_peak_bytes`` are None where the source has none."""

    run: TrainingRun
    rule: SourceRule
    model: ModelSpec
    cluster: Cluster
    plan: ParallelPlan
    work: TrainWorkload
    tuned: bool
    published_step_s: float | None
    published_peak_bytes: float | None


def setting_of(run: TrainingRun) -> Setting:
    """What this run ran, by its cells and its source's rule; CannotPriceError says what is missing or contradictory."""
    rule = rule_of(run.source)
    model = model_of(run, rule)
    n_gpus, tp, pp, cp, dp = _ranks(run)
    seq = run.seq_len or rule.seq_tokens
    batch = run.global_batch_seqs
    if not seq:
        raise CannotPriceError("sequence length not stated")
    if not batch:
        raise CannotPriceError("global batch not stated")
    micro, accum = _micro_batches(run, rule, batch, dp)
    plan = _plan(run, rule, model, tp=tp, pp=pp, cp=cp, dp=dp, micro=micro, accum=accum)
    return Setting(
        run=run,
        rule=rule,
        model=model,
        cluster=cluster_of(run, rule, n_gpus),
        plan=plan,
        work=TrainWorkload(seq_tokens=seq, global_batch=batch),
        tuned=rule.tuned and run.micro_batch is None,
        published_step_s=published_step_s(run, rule),
        published_peak_bytes=run.peak_mem_gb * rule.gb if run.peak_mem_gb else None,
    )


def _ranks(run: TrainingRun) -> tuple[int, int, int, int, int]:
    if not run.num_gpus:
        raise CannotPriceError("number of GPUs not stated")
    tp, pp, cp = run.tp or 1, run.pp or 1, run.cp or 1
    if run.num_gpus % (tp * pp * cp):
        raise CannotPriceError(f"tp*pp*cp = {tp * pp * cp} does not divide num_gpus={run.num_gpus}")
    dp = run.num_gpus // (tp * pp * cp)
    if run.dp and run.dp != dp:
        raise CannotPriceError(f"tp*pp*cp*dp = {tp * pp * cp * run.dp}, but num_gpus={run.num_gpus}")
    return run.num_gpus, tp, pp, cp, dp


def _micro_batches(run: TrainingRun, rule: SourceRule, batch: int, dp: int) -> tuple[int, int]:
    stated = re.search(r"\bGA=(\d+)", run.notes)
    micro = run.micro_batch or 1
    if run.micro_batch and stated and dp * micro * int(stated.group(1)) != batch:
        raise CannotPriceError(f"dp*micro_batch*GA = {dp * micro * int(stated.group(1))} contradicts global_batch_seqs={batch}")
    return micro, max(1, -(-batch // (dp * micro)))


def _plan(
    run: TrainingRun, rule: SourceRule, model: ModelSpec, *, tp: int, pp: int, cp: int, dp: int, micro: int, accum: int
) -> ParallelPlan:
    sharding, stage = SHARDING.get(run.sharding or rule.sharding, ("zero", 1))
    if rule.framework == "llm-foundry" and stage == 2:
        sharding = "fsdp"
    per_node = run.gpus_per_node or 8
    vpp = run.vpp or 1
    kind: CpKind = CP_KINDS.get(run.cp_kind.lower(), "zigzag") if cp > 1 else "none"
    schedule: Schedule = "interleaved" if vpp > 1 else "1f1b"
    first, last = uneven_layers(run, rule, model, pp)
    notes = run.notes.lower()
    return ParallelPlan(
        dp=dp,
        tp=tp,
        pp=pp,
        vpp=vpp,
        cp=cp,
        cp_kind=kind,
        cp_inner=min(cp, max(1, per_node // tp)) if kind == "ulysses-ring" else 1,
        ep=(run.ep or 1) if model.n_experts else 1,
        zero_stage=stage,
        sharding=sharding,
        hsdp_group=min(per_node, dp) if sharding == "hsdp" else 0,
        micro_batch=micro,
        grad_accum=accum,
        layers_first=first,
        layers_last=last,
        schedule=schedule,
        sequence_parallel=_first_stated(run.seq_parallel, rule.seq_parallel, int(tp > 1)),
        recompute=_recompute(run, rule),
        precision=_precision(run, rule),
        attention=_attention(run, rule),
        framework=rule.framework,
        lora_rank=16 if run.model.endswith("-lora") else 0,
        expandable_segments=rule.prefix == "ALST" or "expandable" in notes,
        **_offload(run, rule),
    )


def _first_stated(*choices: int | None) -> int:
    return next(c for c in choices if c is not None)


def _recompute(run: TrainingRun, rule: SourceRule) -> Recompute:
    words: dict[str, Recompute] = {"none": "none", "selective": "selective", "full": "full", "remat": "remat"}
    if "modules=[]" in run.notes:
        return "none"
    return words.get(run.recompute, rule.recompute)


def _precision(run: TrainingRun, rule: SourceRule) -> str:
    if not run.precision:
        return rule.precision
    found = next((word for word in PRECISIONS if word in run.precision.lower()), "")
    if not found:
        raise CannotPriceError(f"precision={run.precision!r} is unknown; known: {', '.join(PRECISIONS)}")
    return found


def _attention(run: TrainingRun, rule: SourceRule) -> Literal["flash", "unfused"]:
    return "unfused" if (run.attention or rule.attention) == "unfused" else "flash"


def _offload(run: TrainingRun, rule: SourceRule) -> dict[str, Any]:
    """What lives in host memory, and ALST's tiling, read from the offload cell and the recipe's own words."""
    notes, word = run.notes.lower(), run.offload.lower()
    if rule.prefix != "ALST":
        both = word == "both"
        return {
            "offload_optimizer": int(both or "optim" in word),
            "offload_params": int(both or "param" in word),
            "offload_activations": int("activ" in word),
            "tiled_mlp": int("tiled_mlp" in notes),
            "fused_loss": int("fused_loss" in notes),
        }
    plain = "baseline" in notes
    listed = "liger" in notes and "tiled mlp" not in notes
    return {
        "offload_optimizer": 1,
        "offload_params": int("param offload" in notes and run.num_gpus == 1),
        "offload_activations": int(word == "both"),
        "fused_loss": int(not plain),
        "tiled_mlp": int(not (plain or listed or "no tiled" in notes)),
    }


def uneven_layers(run: TrainingRun, rule: SourceRule, model: ModelSpec, pp: int) -> tuple[int, int]:
    """Layers of the first and last stage where the source cuts unevenly; (0, 0) = even.

    nanotron balances the stages' matmul weights and counts the LM head as vocab * hidden; a last stage with the head alone is
    given one layer, the least a plan can say. Sailor's files list layers per stage with embedding and head as layers of their own.
    """
    if pp == 1:
        return 0, 0
    listed = re.search(r"layers/stage[^\[]*\[([\d, ]+)\]", run.notes)
    if listed:
        stages = [int(n) for n in listed.group(1).split(",")]
        return max(1, stages[0] - 1), max(1, stages[-1] - 1)
    if rule.framework != "nanotron":
        return 0, 0
    layer = 4 * model.hidden**2 + 3 * model.hidden * model.ffn_hidden
    total = model.n_layers * layer + model.vocab * model.hidden
    stages = [0] * pp
    rank = 0
    for done in range(1, model.n_layers + 1):
        stages[rank] += 1
        if rank < pp - 1 and done * layer * pp >= total * (rank + 1):
            rank += 1
    return stages[0], max(1, stages[-1])


def cluster_of(run: TrainingRun, rule: SourceRule, n_gpus: int) -> Cluster:
    """Where it ran: the cluster that card and interconnect name together, else the source's, else the card's usual one."""
    named = f"{run.gpu} {run.interconnect}"
    gpu = registry.accelerator(run.gpu).name
    for name in (named, rule.cluster, gpu):
        stem = registry.find("clusters", name) if name else ""
        if stem and registry.cluster(stem, 1).gpu == gpu:
            break
    else:
        stem = gpu
    return registry.cluster(stem, n_gpus, run.gpus_per_node)
