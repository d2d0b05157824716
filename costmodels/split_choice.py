"""Which share of a replica's nodes should hold attention and which the FFN: the split that gives most tokens within a time per token."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from dataclasses import dataclass

from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from ..scenarios.serving_parts import AttentionFfnSplit
from .serving import Reach
from .serving_memory import serve_memory
from .serving_ops import ServeSystem
from .serving_split import split_times
from .step_times import PS

MICRO_BATCHES = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitChoice:
    """One split at its best batch: nodes of each side, the plan, sequences in flight, seconds per token, tokens per second and GPU."""

    n_attention: int
    n_ffn: int
    plan: EnginePlan
    batch: int
    tpot_s: float
    tokens_per_s_per_gpu: float


def best_batch(
    model: ModelSpec,
    plan: EnginePlan,
    system: ServeSystem,
    context_tokens: int,
    tpot_s: float,
    batch: int = 0,
    sustained: bool = False,
    most: int = 32768,
) -> tuple[int, float]:
    """Most sequences of ``context_tokens`` whose step takes at most ``tpot_s`` and whose cache fits, and the step's seconds.

    ``batch`` > 0 asks for the time of that batch alone. (0, inf): not even one per attention rank.
    """
    ranks = plan.tp * plan.dp * plan.cp
    top = batch or most
    reach = Reach(tokens=top + 8, chunk=8, seqs=top, kv_low_tokens=max(context_tokens / 2, 1), kv_high_tokens=float(context_tokens))
    times = split_times(model, plan, system, reach, sustained)
    block = plan.block_tokens or system.engine.block_tokens
    memory = serve_memory(model, plan, system.engine, system.accelerator, top, top, block)
    room = memory.kv_blocks * block // context_tokens

    def seconds(n: int) -> float:
        return times.step_ps(n, n * context_tokens, []) / PS

    if batch:
        return (batch, seconds(batch)) if batch <= room else (0, float("inf"))
    n = ranks * bisect_right(range(1, min(top, room) // ranks + 1), tpot_s, key=lambda each: seconds(each * ranks))
    return (n, seconds(n)) if n else (0, float("inf"))


def choose_split(
    model: ModelSpec,
    plan: EnginePlan,
    system: ServeSystem,
    context_tokens: int,
    tpot_s: float,
    batch: int = 0,
    sustained: bool = False,
    n_attention_nodes: int = 0,
) -> list[SplitChoice]:
    """Every split of the cluster's whole nodes that runs, best tokens per second and GPU first.

    ``plan`` gives formats and ``tp`` of attention, whose other GPUs are data parallel; expert groups and micro-batches are searched.
    ``batch`` > 0 fixes the sequences in flight, and splits over ``tpot_s`` drop out; ``n_attention_nodes`` > 0 looks at that split alone.
    BadInput when no split runs.
    """
    nodes, width = system.cluster.n_nodes, system.cluster.gpus_per_node
    if nodes < 2:
        raise BadInput(f"n_gpus={system.cluster.n_gpus} is one node; attention and FFN need one each")
    if not 0 <= n_attention_nodes < nodes:
        raise BadInput(f"n_attention_nodes={n_attention_nodes} of {nodes} nodes: the FFN needs at least one")
    found: list[SplitChoice] = []
    for n_attention in [n_attention_nodes] if n_attention_nodes else range(1, nodes):
        n_ffn = (nodes - n_attention) * width
        groups = [g for g in range(1, n_ffn + 1) if n_ffn % g == 0 and (g == 1 or (model.n_experts and g <= model.n_experts))]
        for ep in (g for g in groups if n_ffn // g <= width):
            for m in MICRO_BATCHES:
                split = AttentionFfnSplit(n_ffn_gpus=n_ffn, micro_batches=m)
                tried = dataclasses.replace(plan, dp=n_attention * width // plan.tp, ep=ep, attention_ffn=split)
                try:
                    n, took = best_batch(model, tried, system, context_tokens, tpot_s, batch, sustained)
                except BadInput:  # does not fit
                    continue
                if n and took <= tpot_s:
                    rate = n / took / system.cluster.n_gpus
                    choice = SplitChoice(
                        n_attention=n_attention, n_ffn=nodes - n_attention, plan=tried, batch=n, tpot_s=took, tokens_per_s_per_gpu=rate
                    )
                    found.append(choice)
    if not found:
        raise BadInput(
            f"no split of {nodes} nodes of {system.accelerator.name} serves {model.name} at {context_tokens:,} tokens in {tpot_s:g} s "
            "a token; allow more time or add nodes"
        )
    return sorted(found, key=lambda c: -c.tokens_per_s_per_gpu)
