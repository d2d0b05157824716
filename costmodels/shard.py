"""What one rank holds: tokens, heads, layers and parameters after the plan has cut the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from ..scenarios.workload import TrainWorkload
from .op import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Per-rank sizes of one micro-batch; each is a number or an array, one per candidate.

    ``tokens`` = micro_batch * seq / cp, the rows of every matmul; ``sp_tokens`` = tokens / tp where sequence parallelism splits
    the norms, else ``tokens``. ``heads`` and ``kv_heads`` are after tp (kv heads are replicated when tp exceeds them). ``layers`` is the
    largest stage's number of layers; ``layers_first`` and ``layers_last`` those of the outer stages.
    """

    tokens: Floats
    sp_tokens: Floats
    seq: Floats
    batch: Floats
    heads: Floats
    kv_heads: Floats
    layers: Floats
    layers_first: Floats
    layers_last: Floats
    q_width: Floats
    kv_width: Floats
    ffn: Floats
    expert_ffn: Floats
    shared_ffn: Floats
    experts: Floats


def shard(model: ModelSpec, plan: ParallelPlan, work: TrainWorkload) -> Shard:
    """Cut the model by the plan; sizes that do not divide round up, as the padded frameworks do."""
    tp, cp, pp = (np.asarray(x, float) for x in (plan.tp, plan.cp, plan.pp))
    batch, seq = np.asarray(plan.micro_batch, float), np.asarray(work.seq_tokens, float)
    tokens = batch * seq / cp
    heads = np.ceil(model.n_heads / tp)
    kv_heads = np.ceil(model.n_kv_heads / tp)
    first = np.asarray(plan.layers_first, float)
    last = np.asarray(plan.layers_last, float)
    n_uneven = (first > 0).astype(float) + (last > 0)
    middle = np.where(pp > n_uneven, np.ceil((model.n_layers - first - last) / np.maximum(pp - n_uneven, 1)), 0)
    outer_first = np.where(first > 0, first, middle)
    # the ceil leaves the last stage short: 62 layers on 4 stages are 16, 16, 16, 14
    short = model.n_layers - first - middle * np.maximum(pp - n_uneven - 1, 0)
    outer_last = np.where(last > 0, last, np.where(pp > 1, np.maximum(short, 0), outer_first))
    return Shard(
        tokens=tokens, sp_tokens=tokens / np.where(np.asarray(plan.sequence_parallel) > 0, tp, 1), seq=seq, batch=batch,
        heads=heads, kv_heads=kv_heads, layers=np.maximum(np.maximum(middle, outer_first), outer_last),
        layers_first=outer_first, layers_last=outer_last,
        q_width=heads * model.qk_dim, kv_width=kv_heads * model.qk_dim,
        ffn=np.ceil(model.ffn_hidden / tp),
        expert_ffn=np.ceil(model.moe_ffn_hidden / np.asarray(plan.expert_tp, float)),
        shared_ffn=np.ceil(model.shared_hidden / tp),
        experts=np.ceil(model.n_experts / np.asarray(plan.ep, float)),
    )  # fmt: skip
