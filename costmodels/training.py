"""Seconds of one training step: layers into stages, stages into a pipeline, then gradients, optimizer and overhead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from ..scenarios.workload import TrainWorkload
from .activations import layer_saved
from .context import half
from .data_parallel import accumulate_time, data_parallel_time, optimizer_time
from .distinct import Memo
from .flops import train_flops
from .layer_time import LayerTime, layer_time
from .lookup import attention_keys
from .op import Floats, Gemm, Stream, price
from .overlap import exposed
from .pipeline import span
from .shard import Shard, shard
from .states import stage_params
from .system import System

BYTES = 2.0
MEASURED_PROMPT_TOKENS = 16384
"""Longest prompt in the attention tables behind the calibrations; past it the rate is held, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds of one optimizer step and where they go; arrays hold one value per candidate.

    ``step_time_s`` is the sum of the parts from ``compute_s`` to ``overhead_s``. ``model_flops`` are causal, for all GPUs, without
    recomputation; ``hardware_flops`` are executed per GPU. ``floor_s`` is model FLOPs at peak. ``micro_fwd_s`` and ``micro_bwd_s`` are
    the slowest stage's times for one micro-batch, for replay.
    """

    step_time_s: Floats
    compute_s: Floats
    bubble_s: Floats
    exposed_tp_s: Floats
    exposed_cp_s: Floats
    exposed_ep_s: Floats
    exposed_dp_s: Floats
    exposed_pp_s: Floats
    exposed_offload_s: Floats
    optimizer_s: Floats
    overhead_s: Floats
    model_flops: Floats
    hardware_flops: Floats
    floor_s: Floats
    micro_fwd_s: Floats
    micro_bwd_s: Floats
    micro_wgrad_s: Floats
    p2p_s: Floats
    error_frac: Floats
    extrapolated: bool


def check_trainable(model: ModelSpec) -> None:
    """BadInput for a model whose training step is not priced: its layers are not softmax attention alone."""
    if model.special_layers:
        raise BadInput(
            f"{model.name} has {model.special_layers}, whose training steps are not priced; plan it with --task serve, or train a model "
            "of softmax attention alone"
        )


def train_step(model: ModelSpec, plan: ParallelPlan, work: TrainWorkload, system: System, memo: Memo | None = None) -> StepCost:
    """Price one optimizer step of this plan; every numeric field of the plan and workload may be an array of candidates.

    ``step = pipeline(micro-batches) + exposed data-parallel messages + optimizer + overhead``. Raises BadInput when the card lacks the
    plan's arithmetic; legality of the layout is the planner's business. ``memo`` shares layers between calls: see ``layer_time``.
    """
    check_trainable(model)
    cut = shard(model, plan, work)
    layer = layer_time(model, plan, cut, system, memo)
    params = stage_params(model, plan, cut, "first")
    stage = _stage_time(model, plan, cut, system, layer, accumulate_time(plan, system, params))
    m = np.asarray(plan.grad_accum, float)
    p2p = _p2p(model, plan, cut, system)
    pipe = span(plan.schedule, plan.pp, plan.vpp, plan.grad_accum, stage["fwd"], stage["bwd"], stage["wgrad"], p2p, stage["paired"])
    worst = stage["fwd"] + stage["bwd"] + stage["wgrad"]
    busy = pipe.span_s - pipe.bubble_s - pipe.exposed_p2p_s
    # the fill and drain pass each stage once: stages lighter than the slowest shorten them
    bubble = pipe.bubble_s * np.minimum(stage["mean"] / worst, 1.0)
    dp_s = _exposed_dp(plan, system, params, stage, m)
    overhead = _overhead(plan, system, cut, m, worst)
    parts = {
        "compute_s": m * stage["compute"], "bubble_s": bubble, "exposed_tp_s": m * stage["tp"], "exposed_cp_s": m * stage["cp"],
        "exposed_ep_s": np.maximum(busy - m * (worst - stage["ep"]), 0.0), "exposed_dp_s": dp_s, "exposed_pp_s": pipe.exposed_p2p_s,
        "exposed_offload_s": m * stage["offload"], "optimizer_s": optimizer_time(plan, system, params), "overhead_s": overhead,
    }  # fmt: skip
    useful = train_flops(model, work.seq_tokens, work.global_batch)
    n_gpus = np.asarray(plan.n_gpus, float)
    done = (1 / 3 if plan.optimizer == "mezo" else 2 / 3 if plan.lora_rank else 1.0) * useful
    floor = done / n_gpus / system.accelerator.peak_flops_per_s(plan.precision)
    total = sum(parts.values())
    return StepCost(
        step_time_s=np.maximum(total, floor), **parts, model_flops=useful, hardware_flops=m * stage["flops"], floor_s=floor,
        micro_fwd_s=stage["fwd"], micro_bwd_s=stage["bwd"], micro_wgrad_s=stage["wgrad"], p2p_s=p2p,
        error_frac=_error(system, work, total), extrapolated=_extrapolated(system, work),
    )  # fmt: skip


def _stage_time(
    model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System, layer: LayerTime, accumulate: Floats
) -> dict[str, Floats]:
    """The slowest stage's micro-batch: forward, input- and weight-gradient seconds with exposed messages inside, and their parts."""
    head_f, head_b, head_w, head_flops = _head(model, plan, cut, system)
    embed = price(Stream(n_bytes=3 * BYTES * cut.sp_tokens * model.hidden), system)
    last_extra, first_extra = head_f + head_b + head_w, 2 * embed
    one = layer.fwd_s + layer.bwd_s + layer.wgrad_s + layer.tp_fwd_s + layer.tp_bwd_s + layer.cp_fwd_s + layer.cp_bwd_s
    one = one + layer.ep_fwd_s + layer.ep_bwd_s
    alone = np.asarray(plan.pp) == 1
    with_head = alone | (cut.layers_last * one + last_extra >= cut.layers * one)
    n = np.where(with_head & ~alone, cut.layers_last, cut.layers)
    head = with_head.astype(float)
    emb = alone.astype(float) * embed
    copy_f, copy_b = _offload(model, plan, cut, system, layer, n)
    compute_f, compute_b, compute_w = (
        n * layer.fwd_s + head * head_f + emb,
        n * layer.bwd_s + head * head_b + emb,
        n * layer.wgrad_s + head * head_w + accumulate,
    )
    comm_f = n * (layer.tp_fwd_s + layer.cp_fwd_s + layer.ep_fwd_s) + copy_f
    comm_b = n * (layer.tp_bwd_s + layer.cp_bwd_s + layer.ep_bwd_s) + copy_b
    mean = (model.n_layers * one + last_extra + first_extra) / np.asarray(plan.pp, float)
    # DualPipe runs a forward beside a backward, each one's expert messages under the other's compute; lone chunks show them
    ep = n * (layer.ep_fwd_s + layer.ep_bwd_s)
    whole = compute_f + compute_b + compute_w + comm_f + comm_b
    paired = whole - ep + exposed(ep, n * (layer.fwd_s + layer.bwd_s + layer.wgrad_s), 1.0)
    return {
        "fwd": compute_f + comm_f, "bwd": compute_b + comm_b, "wgrad": compute_w, "mean": mean,
        "compute": compute_f + compute_b + compute_w, "tp": n * (layer.tp_fwd_s + layer.tp_bwd_s),
        "cp": n * (layer.cp_fwd_s + layer.cp_bwd_s),
        "ep": ep, "paired": paired,
        "offload": copy_f + copy_b, "flops": n * layer.flops + head * head_flops,
    }  # fmt: skip


def _head(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System) -> tuple[Floats, Floats, Floats, Floats]:
    """LM head and loss of one micro-batch: forward, input-gradient and weight-gradient seconds, FLOPs.

    The loss streams the logits: 16-bit write and read, fp32 softmax and its gradient (half of it forward). A fused loss skips the copies.
    """
    vocab = model.vocab / np.asarray(plan.tp, float)
    n, h = cut.tokens, model.hidden
    dtype = half(plan)
    forward, grad = (price(Gemm(m=n, n=a, k=b, dtype=dtype), system) for a, b in ((vocab, h), (h, vocab)))
    weight = 0.0 * grad if plan.lora_rank else price(Gemm(m=vocab, n=h, k=n, dtype=dtype), system)
    per_element = np.where(np.asarray(plan.fused_loss) > 0, 4.0, system.framework.loss_passes * system.framework.logits_bytes_per_element)
    loss = price(Stream(n_bytes=per_element * n * vocab), system)
    if plan.optimizer == "mezo":
        return forward + loss / 2, 0.0 * grad, 0.0 * grad, 2.0 * n * vocab * h
    return forward + loss / 2, grad + loss / 2, weight, 6.0 * n * vocab * h


def _p2p(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System) -> Floats:
    """One stage-to-stage message of one micro-batch (scattered over tp under sequence parallelism)."""
    stride = np.asarray(plan.tp) * np.asarray(plan.cp) * np.asarray(plan.dp)
    return np.where(np.asarray(plan.pp) > 1, system.network.p2p_s(cut.sp_tokens * model.hidden * BYTES, stride), 0.0)


def _offload(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System, layer: LayerTime, n: Floats) -> tuple[Floats, Floats]:
    """Host copies of checkpoints and parameter shards that forward and backward cannot hide (copies run on their own engines)."""
    acts, pars = np.asarray(plan.offload_activations, float), np.asarray(plan.offload_params, float)
    if not (np.any(acts) or np.any(pars)):
        return 0.0 * n, 0.0 * n
    kept = layer_saved(model, plan, cut, system.framework, plan.recompute)
    params = stage_params(model, plan, cut, "middle")
    held = 2.0 * (params.layer_dense + params.layer_expert) / (np.asarray(plan.dp, float) * np.asarray(plan.cp, float))
    copy = acts * system.roofline.host_copy_s(kept) + pars * system.roofline.host_copy_s(held)
    return n * exposed(copy, layer.fwd_s, 1.0), n * exposed(copy, layer.bwd_s + layer.wgrad_s, 1.0)


def _exposed_dp(plan: ParallelPlan, system: System, params: object, stage: dict[str, Floats], m: Floats) -> Floats:
    """Data-parallel messages not hidden: ZeRO-3's gathers behind each micro-batch, gradients behind the last backward."""
    t = data_parallel_time(plan, system, params)  # type: ignore[arg-type]
    frac = system.framework.overlap_dp_frac
    each = exposed(t.gather_forward_s, stage["fwd"], frac) + exposed(
        t.gather_backward_s + t.reduce_each_s, stage["bwd"] + stage["wgrad"], frac
    )
    once = np.where(np.asarray(plan.zero_stage) == 0, frac, system.framework.overlap_shard_frac)
    return m * each + exposed(t.once_s, stage["bwd"] + stage["wgrad"], once)


def _overhead(plan: ParallelPlan, system: System, cut: Shard, m: Floats, worst: Floats) -> Floats:
    """Host time that the device waits for: a fixed part per step, and enqueueing where a micro-batch is shorter than its launches."""
    fw = system.framework
    tp, pp = np.asarray(plan.tp, float), np.asarray(plan.pp)
    spans = (pp > 1) & (tp > 1) & (np.asarray(plan.n_gpus) > system.cluster.gpus_per_node)
    passes = 4 / 3 if plan.recompute in ("full", "remat") else 1.0
    host = passes * (fw.host_layer_s + fw.host_layer_tp_s * (tp > 1)) + fw.host_contention_s * tp * spans
    return fw.step_overhead_s + m * np.maximum(cut.layers * host - worst, 0.0)


def _extrapolated(system: System, work: TrainWorkload) -> bool:
    """Whether the card's efficiencies are borrowed, or a sequence is longer than any the attention kernels were measured on."""
    return bool(system.roofline.calibration.transferred_from) or bool(np.max(work.seq_tokens) > MEASURED_PROMPT_TOKENS)


def _error(system: System, work: TrainWorkload, total: Floats) -> Floats:
    """Expected relative error of the step, in quadrature: the framework's measured one, the kernels' (wider if borrowed), and the
    attention kernel's for each octave past the prompts it was measured on."""
    roofline = system.roofline
    key, *_ = attention_keys("prefill", 128, 128, 0, "bf16", roofline.calibration.families)
    octaves = float(np.log2(max(float(np.max(work.seq_tokens)) / MEASURED_PROMPT_TOKENS, 1.0)))
    beyond = roofline.calibration.families[key].beyond_frac * octaves if key in roofline.calibration.families else 0.0
    return np.sqrt(system.framework.error_frac**2 + roofline.error_frac("gemm.bf16") ** 2 + beyond**2) * np.ones_like(total)
