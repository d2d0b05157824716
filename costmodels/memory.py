"""Memory of one training step by component: the worst rank's device bytes and a node's host bytes, against their limits."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from ..scenarios.workload import TrainWorkload
from .activations import attention_working, ffn_working, input_bytes, layer_saved
from .op import Floats
from .pipeline import in_flight
from .shard import Shard, shard
from .states import OPTIMIZER_BYTES, StageParams, data_ranks, stage_params, state_bytes
from .system import System

LOSS_TILE_BYTES = 2.0**30
"""Logits held at once by a fused or tiled loss: the 1 GiB shard that ALST uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBreakdown:
    """Bytes on the fullest rank (arrays: one per candidate); ``host_*`` are per node. ``total`` is the sum of the parts above it."""

    weights_bytes: Floats
    grads_bytes: Floats
    optimizer_bytes: Floats
    activations_bytes: Floats
    working_bytes: Floats
    logits_bytes: Floats
    buffers_bytes: Floats
    context_bytes: Floats
    fragmentation_bytes: Floats
    total_bytes: Floats
    limit_bytes: Floats
    host_bytes: Floats
    host_limit_bytes: Floats

    @property
    def fits(self) -> np.ndarray:
        """Whether both the device and the host limit hold."""
        return np.asarray((self.total_bytes <= self.limit_bytes) & (self.host_bytes <= self.host_limit_bytes))


PARTS = tuple(f.name for f in fields(MemoryBreakdown))[:9]


def train_memory(model: ModelSpec, plan: ParallelPlan, work: TrainWorkload, system: System) -> MemoryBreakdown:
    """Peak memory of a training step: the larger of the first stage (most micro-batches in flight) and the last (logits)."""
    cut = shard(model, plan, work)
    first, last = (_stage(model, plan, cut, system, stage) for stage in ("first", "last"))
    parts = {name: np.where(first["total"] >= last["total"], first[name], last[name]) for name in PARTS}
    return MemoryBreakdown(
        **parts, total_bytes=np.maximum(first["total"], last["total"]),
        limit_bytes=system.accelerator.hbm_bytes * system.accelerator.usable_hbm_frac * np.ones_like(parts["weights_bytes"]),
        host_bytes=host_bytes(model, plan, cut, system),
        host_limit_bytes=system.cluster.host_ram_bytes * np.ones_like(parts["weights_bytes"]),
    )  # fmt: skip


def stage_memory(model: ModelSpec, plan: ParallelPlan, work: TrainWorkload, system: System, stage: str) -> dict[str, Floats]:
    """Bytes by component, and their ``total``, on a rank of the ``"first"`` or ``"last"`` stage: rows of the planner's integer program."""
    return _stage(model, plan, shard(model, plan, work), system, stage)


def _stage(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System, stage: str) -> dict[str, Floats]:
    fw = system.framework
    params = stage_params(model, plan, cut, stage)
    weights, grads, optimizer = state_bytes(plan, fw, params)
    off_opt, off_par = np.asarray(plan.offload_optimizer, float), np.asarray(plan.offload_params, float)
    kept, working = _activations(model, plan, cut, system, stage)
    logits = (
        _logits(model, plan, cut, system) if stage == "last" else np.where(np.asarray(plan.pp) == 1, _logits(model, plan, cut, system), 0.0)
    )
    parts: dict[str, Floats] = {
        "weights_bytes": weights * (1 - off_par) + _gathered(plan, params),
        "grads_bytes": grads * (1 - off_opt),
        "optimizer_bytes": optimizer * (1 - off_opt),
        "activations_bytes": kept, "working_bytes": working, "logits_bytes": logits,
        "buffers_bytes": fw.buffer_bytes * (np.asarray(plan.n_gpus) > 1),
        "context_bytes": fw.context_bytes + np.zeros_like(kept),
    }  # fmt: skip
    loss = fw.fragmentation_frac * (0.25 if plan.expandable_segments else 1.0)
    parts["fragmentation_bytes"] = loss * (kept + working + logits)
    parts["total"] = sum(parts[name] for name in PARTS)
    return parts


def _gathered(plan: ParallelPlan, params: StageParams) -> Floats:
    """Whole units held while ZeRO-3 computes: the largest unit and the one prefetched behind it, and its gradient before it is reduced."""
    return np.where(np.asarray(plan.zero_stage) >= 3, 2.0 * 3 * params.largest, 0.0)


def _activations(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System, stage: str) -> tuple[Floats, Floats]:
    """(saved, working) bytes: what all in-flight micro-batches keep, and the peak of the one layer that is running."""
    fw = system.framework
    n_layers = cut.layers_first if stage == "first" else cut.layers_last
    waves = in_flight(plan.schedule, plan.pp, plan.vpp, plan.grad_accum) if stage == "first" else np.ones_like(cut.tokens)
    per_layer = layer_saved(model, plan, cut, fw, plan.recompute)
    offloaded = np.asarray(plan.offload_activations, float)
    if plan.optimizer == "mezo":  # forward only: nothing is kept, one layer runs
        return np.zeros_like(cut.tokens), (attention_working(model, plan, cut) + ffn_working(model, plan, cut)) / 3
    if plan.recompute in ("none", "selective"):
        # the running layer's gradients: one hidden and the widest intermediate pair
        working = input_bytes(model, plan, cut) * 2 + 4.0 * cut.tokens * np.maximum(cut.ffn, cut.expert_ffn * model.top_k)
        return per_layer * n_layers * waves * (1 - offloaded), working
    part = np.where(
        np.asarray(plan.recompute_layers) < 0, 1.0, np.minimum(np.asarray(plan.recompute_layers) / np.maximum(n_layers, 1), 1.0)
    )
    whole = layer_saved(model, plan, cut, fw, "none")
    kept = (part * per_layer * (1 - offloaded) + (1 - part) * whole) * n_layers * waves
    return kept, np.maximum(attention_working(model, plan, cut), ffn_working(model, plan, cut))


def _logits(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System) -> Floats:
    """Logits, their fp32 copy, softmax and gradient: bytes per element x tokens x vocab / tp; one tile's when the loss is fused."""
    whole = system.framework.logits_bytes_per_element * cut.tokens * model.vocab / np.asarray(plan.tp, float)
    tiled = np.minimum(whole, LOSS_TILE_BYTES)
    return np.where(np.asarray(plan.fused_loss) > 0, tiled, whole)


def host_bytes(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System) -> Floats:
    """Host memory of one node: offloaded optimizer (fp32 master and moments, 16-bit gradients), parameters and checkpoints of its ranks."""
    per_node = np.minimum(system.cluster.gpus_on_host, np.asarray(plan.n_gpus, float))
    params = stage_params(model, plan, cut, "first")
    dense_ranks, expert_ranks = data_ranks(plan)
    share = params.dense / dense_ranks + params.expert / expert_ranks
    trained = 0.0 if plan.lora_rank else 4.0 + OPTIMIZER_BYTES[plan.optimizer] + 2.0
    kept = layer_saved(model, plan, cut, system.framework, plan.recompute) * cut.layers_first
    waves = in_flight(plan.schedule, plan.pp, plan.vpp, plan.grad_accum)
    rank = (
        np.asarray(plan.offload_optimizer, float) * trained * share
        + np.asarray(plan.offload_params, float) * 2.0 * share
        + np.asarray(plan.offload_activations, float) * kept * waves
    )
    return rank * per_node
