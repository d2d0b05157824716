"""What the data ranks do once per step or per micro-batch: reduce gradients, gather weights, run the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..scenarios.plan import ParallelPlan
from .op import Floats
from .states import OPTIMIZER_BYTES, StageParams, data_ranks
from .system import System


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallelTime:
    """Seconds of messages: per micro-batch in forward and backward (ZeRO-3), and once per step (gradients, weights)."""

    gather_forward_s: Floats
    gather_backward_s: Floats
    reduce_each_s: Floats
    once_s: Floats


def data_parallel_time(plan: ParallelPlan, system: System, params: StageParams) -> DataParallelTime:
    """Messages of one rank of this stage: all-reduce (stage 0), reduce-scatter + all-gather (1, 2), per-layer gathers (3).

    Gradients travel at the framework's gradient width (16 bits when parameters are sharded), weights at 2 bytes.
    Source: Rajbhandari et al. 2020, §7: 2 volumes for stages 1 and 2, 3 for stage 3, per micro-batch for stage 3.
    """
    zero = np.asarray(plan.zero_stage)
    dense, expert = data_ranks(plan)
    stride = np.asarray(plan.tp, float)
    expert_stride = np.asarray(plan.ep, float) * np.asarray(plan.expert_tp, float)
    net, fw = system.network, system.framework
    grad, bucket = float(fw.grad_dtype_bytes), fw.bucket_bytes
    group = np.minimum(dense, np.asarray(plan.hsdp_group, float)) if plan.sharding == "hsdp" else dense

    def gather(width: float) -> Floats:
        return sent(net.all_gather_s, width, params.dense, group, stride) + sent(
            net.all_gather_s, width, params.expert, expert, expert_stride
        )

    def scatter(width: float) -> Floats:
        return sent(net.reduce_scatter_s, width, params.dense, group, stride) + sent(
            net.reduce_scatter_s, width, params.expert, expert, expert_stride
        )

    def sent(
        call: Callable[..., Floats], width: float, n_params: Floats, ranks: Floats, step: Floats, bucket: float = fw.shard_bucket_bytes
    ) -> Floats:
        """The message in buckets, each paying the latency of its own collective."""
        if not np.any(n_params):
            return 0.0
        unit = np.where(zero >= 3, width * (params.layer_dense + params.layer_expert), bucket)
        n = np.maximum(np.ceil(width * n_params / unit), 1.0)
        return n * call(width * n_params / n, ranks, step)

    reduce = sent(net.all_reduce_s, grad, params.dense, dense, stride, bucket)
    reduce = reduce + sent(net.all_reduce_s, grad, params.expert, expert, expert_stride, bucket)
    whole = np.where(zero >= 3, 1.0, 0.0)
    weights, each_reduce = gather(2.0), scatter(min(grad, 2.0))
    across: Floats = 0.0
    if plan.sharding == "hsdp":  # copies agree once per step: all-reduce of each shard between the groups
        across = net.all_reduce_s(2.0 * params.dense / group, dense / group, stride * group)
    twice = np.where(zero == 2, np.asarray(plan.grad_accum, float), 1.0)  # stage 2 keeps no whole gradient between micro-batches
    once = np.where(zero == 0, reduce, np.where(zero < 3, twice * scatter(grad) + weights, across))
    return DataParallelTime(
        gather_forward_s=whole * weights, gather_backward_s=whole * weights, reduce_each_s=whole * each_reduce, once_s=once
    )


def accumulate_time(plan: ParallelPlan, system: System, params: StageParams) -> Floats:
    """Seconds per micro-batch to add 16-bit gradients into the running sum: read both, write one. One micro-batch needs no sum."""
    if plan.lora_rank or plan.optimizer == "mezo":
        return np.zeros_like(params.dense)
    held = np.where(np.asarray(plan.zero_stage) >= 2, 1 / data_ranks(plan)[0], 1.0)
    moved = (params.dense + params.expert) * held * (2.0 + 2 * system.framework.grad_dtype_bytes) * system.framework.accumulate_passes
    return np.where(np.asarray(plan.grad_accum) > 1, system.roofline.stream_s(moved), 0.0)


def optimizer_time(plan: ParallelPlan, system: System, params: StageParams) -> Floats:
    """Seconds of the optimizer step: a stream over this rank's shard, or host Adam and the copies around it when offloaded.

    Device: read master, moments and gradient, write master, moments and 16-bit weight; the gradient once more for its norm.
    Host: 16-bit gradients down, host Adam at its share of the node's memory bandwidth, 16-bit weights up.
    """
    dense, expert = data_ranks(plan)
    sharded = np.asarray(plan.zero_stage) >= 1
    n = params.dense / np.where(sharded, dense, 1.0) + params.expert / np.where(sharded, expert, 1.0)
    if plan.lora_rank:
        return np.zeros_like(n)
    if plan.optimizer == "mezo":  # perturb, undo, perturb, update: four passes over the 16-bit weights
        return system.roofline.stream_s(4 * 4.0 * n)
    moments = OPTIMIZER_BYTES[plan.optimizer]
    device = system.roofline.stream_s(n * (2 * (4.0 + moments) + 2.0 + 2 * system.framework.grad_dtype_bytes))
    per_node = np.minimum(system.cluster.gpus_on_host, np.asarray(plan.n_gpus, float))
    adam = system.roofline.host_adam_s(n, system.cluster.host_bytes_per_s / per_node)
    copies = 2 * system.roofline.host_copy_s(2.0 * n)
    part = np.asarray(plan.offload_optimizer, float)
    return (1 - part) * device + part * (adam + copies)
