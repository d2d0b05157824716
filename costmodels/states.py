"""Parameters, gradients and optimizer state that one rank holds, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.framework import Framework
from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from .op import Floats
from .params import ParamCount, count_params
from .shard import Shard

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw-bf16": 4.0, "adamw-8bit": 2.0, "lion": 4.0, "sgd": 0.0, "mezo": 0.0}
"""Moments per parameter, bytes: two fp32 for AdamW, two bf16, two 8-bit, one fp32 for Lion. The fp32 master copy is extra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageParams:
    """Parameters on one rank of a stage before any sharding over data ranks: ``dense`` (data ranks dp*cp), ``expert`` (dp*cp*tp/ep/etp).

    ``layer_dense`` / ``layer_expert`` are one average layer's; ``largest`` is the biggest single gathered unit (a layer or the embedding).
    """

    dense: Floats
    expert: Floats
    layer_dense: Floats
    layer_expert: Floats
    largest: Floats


def stage_params(model: ModelSpec, plan: ParallelPlan, cut: Shard, stage: str) -> StageParams:
    """Parameters of the ``"first"``, ``"middle"`` or ``"last"`` stage on one rank; with pp = 1 the first stage is all of them."""
    count = count_params(model)
    tp, pp = np.asarray(plan.tp, float), np.asarray(plan.pp, float)
    layer_dense, layer_expert = _layer(model, count, plan)
    n_layers = {"first": cut.layers_first, "middle": cut.layers, "last": cut.layers_last}[stage]
    embed = (count.embedding + count.positions) / tp
    head = count.head / tp + count.final_norm
    tied_copy = count.embedding / tp if model.tied_embeddings else 0.0  # the last stage of a pipeline keeps its own copy
    edge = {
        "first": embed + np.where(pp == 1, head, 0.0),
        "middle": np.zeros_like(tp),
        "last": np.where(pp == 1, embed + head, head + tied_copy),
    }[stage]
    return StageParams(
        dense=n_layers * layer_dense + edge, expert=n_layers * layer_expert, layer_dense=layer_dense, layer_expert=layer_expert,
        largest=np.maximum(layer_dense + layer_expert, count.embedding / tp),
    )  # fmt: skip


def _layer(model: ModelSpec, count: ParamCount, plan: ParallelPlan) -> tuple[Floats, Floats]:
    tp = np.asarray(plan.tp, float)
    moe_share = count.n_moe_layers / model.n_layers
    shared = count.shared_per_layer * moe_share
    dense_ffn = count.dense_ffn_per_layer * (1 - moe_share)
    dense = (count.attn_per_layer + shared + dense_ffn) / tp + count.norm_per_layer + count.router_per_layer * moe_share
    expert = model.n_experts * count.expert * moe_share / (np.asarray(plan.ep, float) * np.asarray(plan.expert_tp, float))
    return dense, expert


def data_ranks(plan: ParallelPlan) -> tuple[Floats, Floats]:
    """Ranks over which dense and expert parameters are replicated (or sharded by ZeRO): dp*cp and dp*cp*tp/(ep*expert_tp)."""
    dense = np.asarray(plan.dp, float) * np.asarray(plan.cp, float)
    expert = dense * np.asarray(plan.tp, float) / (np.asarray(plan.ep, float) * np.asarray(plan.expert_tp, float))
    return dense, np.maximum(expert, 1.0)


def state_bytes(plan: ParallelPlan, fw: Framework, params: StageParams) -> tuple[Floats, Floats, Floats]:
    """Bytes per rank of (weights, gradients, optimizer) after ZeRO; Source: Rajbhandari et al. 2020, §5 (16 bytes per parameter).

    Weights 2, gradients ``fw.grad_dtype_bytes``, optimizer 4 (master) + moments; stage 1 shards the optimizer, 2 the gradients,
    3 the weights, each over the data ranks (the ranks of one copy under ``hsdp``). 8-bit recipes keep 16-bit
    weights. LoRA trains only its adapters: gradients and optimizer state of the base vanish, the adapters' own are too small to count.
    """
    dense_ranks, expert_ranks = data_ranks(plan)
    if plan.sharding == "hsdp":
        dense_ranks = np.minimum(dense_ranks, np.asarray(plan.hsdp_group, float))
    zero = np.asarray(plan.zero_stage)
    trained = 0.0 if plan.lora_rank or plan.optimizer == "mezo" else 1.0

    def held(per_param: float, from_stage: int) -> Floats:
        shard_dense = np.where(zero >= from_stage, dense_ranks, 1.0)
        shard_expert = np.where(zero >= from_stage, expert_ranks, 1.0)
        return per_param * (params.dense / shard_dense + params.expert / shard_expert)

    whole = plan.precision == "fp32"  # weights are their own master copy
    weight_bytes, master = (4.0, 0.0) if whole else (2.0, 4.0 if fw.master_weights else 0.0)
    moments = OPTIMIZER_BYTES[plan.optimizer]
    optimizer = 0.0 if plan.optimizer == "mezo" else held(trained * (master + moments), 1)
    return held(weight_bytes, 3), held(trained * fw.grad_dtype_bytes, 2), optimizer
