"""Predictors of seconds, rates and bytes: each takes a case and asks the cost model about its layout."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..costmodels.context import attention_ops
from ..costmodels.flops import train_flops
from ..costmodels.layer_time import layer_time
from ..costmodels.moe_volume import narrow_flops
from ..costmodels.op import price
from ..costmodels.overlap import exposed
from ..costmodels.sequence_volume import linear_state
from ..costmodels.shard import shard
from ..costmodels.state_scan import best_all_scan_s, gather_states_s
from ..costmodels.transformer import backward
from ..scenarios.errors import BadInput
from ..scenarios.plan import ParallelPlan
from ..scenarios.reference import Case, Layout
from .case_setting import best_tokens_per_s, longest_fit, longest_of, memory, model_of, scalar, scalar_int, step, system_of
from .training_price import TUNED_VPP

GIB = 2.0**30
INT32_LIMIT = 2**31


def max_seq(case: Case) -> float:
    """Longest sequence that fits, tokens. ``numbers.int32_index = 1``: tokens x hidden is indexed with 32 bits, which bounds it too."""
    layout = case.layout
    limit = float("inf")
    if case.numbers.get("int32_index"):
        limit = INT32_LIMIT / model_of(layout).hidden * scalar_int(layout.plan.cp)
    return longest_fit(layout, token_limit=limit)


def fits(case: Case) -> float:
    """1 if the layout fits in device and host memory, else 0."""
    return float(np.all(memory(case.layout).fits))


def max_seq_ratio(case: Case) -> float:
    """Longest power-of-two sequence of the layout over the baseline's, each at its best degree of its axis; 0 when no baseline fits."""
    ours = longest_of(case.layout, case.words["axis"])
    theirs = longest_of(_baseline(case), case.words["baseline_axis"])
    return ours / theirs if theirs else 0.0


def max_seq_power_of_two(case: Case) -> float:
    """Longest power-of-two sequence that fits at the best degree of one axis."""
    return longest_of(case.layout, case.words["axis"])


def peak_gib(case: Case) -> float:
    """Device memory of the fullest rank in GiB, context included."""
    return scalar(memory(case.layout).total_bytes) / GIB


def peak_states_gib(case: Case) -> float:
    """Weights, gradients, optimizer state and activations of the fullest rank in GiB: what a paper's formula counts."""
    m = memory(case.layout)
    return scalar(np.asarray(m.weights_bytes) + m.grads_bytes + m.optimizer_bytes + m.activations_bytes) / GIB


def host_gib(case: Case) -> float:
    """Host memory of one node in GiB."""
    return scalar(memory(case.layout).host_bytes) / GIB


def step_time(case: Case) -> float:
    """Seconds of one optimizer step."""
    return scalar(step(case.layout).step_time_s)


def tuned_step_time(case: Case) -> float:
    """Seconds of the fastest step over micro-batches 1 to 16 and interleaving that fits: the source tunes both without printing them."""
    layout = case.layout
    per_rank = scalar_int(layout.work.global_batch) // scalar_int(layout.plan.dp)
    best = float("inf")
    for micro in (1, 2, 4, 8, 16):
        for vpp in TUNED_VPP:
            if per_rank % micro == 0 and _interleaves(layout, vpp, per_rank // micro):
                plan = dataclasses.replace(
                    layout.plan, micro_batch=micro, grad_accum=per_rank // micro, vpp=vpp, schedule="interleaved" if vpp > 1 else "1f1b"
                )
                tried = dataclasses.replace(layout, plan=plan)
                if bool(np.all(memory(tried).fits)):
                    best = min(best, scalar(step(tried).step_time_s))
    return best


def _interleaves(layout: Layout, vpp: int, n_micro: int) -> bool:
    pp = scalar_int(layout.plan.pp)
    return vpp == 1 or (pp > 1 and model_of(layout).n_layers % (pp * vpp) == 0 and n_micro % pp == 0)


def speedup(case: Case) -> float:
    """Baseline step time over the layout's: both do the same work."""
    return scalar(step(_baseline(case)).step_time_s) / scalar(step(case.layout).step_time_s)


def throughput_ratio(case: Case) -> float:
    """Sequences per second of the layout over the baseline's, whatever their batches."""
    ours, theirs = case.layout, _baseline(case)
    rate = scalar(ours.work.global_batch) / scalar(step(ours).step_time_s)
    return rate / (scalar(theirs.work.global_batch) / scalar(step(theirs).step_time_s))


def best_speedup(case: Case) -> float:
    """Tokens per second of the best layout over one axis against the baseline's best over its own; 0 when no baseline fits."""
    ours = best_tokens_per_s(case.layout, case.words["axis"])
    theirs = best_tokens_per_s(_baseline(case), case.words["baseline_axis"])
    return ours / theirs if theirs else 0.0


def flatness(case: Case) -> float:
    """TFLOPS of the best layout at this length over those at the baseline's length, in the case's convention."""

    def best(layout: Layout) -> float:
        work = layout.work
        flops = train_flops(model_of(layout), scalar(work.seq_tokens), 1.0, convention=case.flops_convention)
        return best_tokens_per_s(layout, case.words["axis"]) * scalar(flops) / scalar(work.seq_tokens)

    return best(case.layout) / best(_baseline(case))


def tflops_per_gpu(case: Case) -> float:
    """Achieved TFLOPS per GPU in the case's convention: causal, noncausal, or hardware (noncausal with the recomputed forward)."""
    layout = case.layout
    convention = "noncausal" if case.flops_convention == "hardware" else case.flops_convention
    flops = train_flops(model_of(layout), scalar(layout.work.seq_tokens), scalar(layout.work.global_batch), convention=convention)
    again = 4 / 3 if case.flops_convention == "hardware" else 1.0
    return again * scalar(flops) / scalar(step(layout).step_time_s) / layout.n_gpus / 1e12


def mfu(case: Case) -> float:
    """Model FLOPs in the case's convention over the 16-bit peak of all GPUs."""
    peak = system_of(case.layout).accelerator.peak_flops_per_s("bf16")
    return tflops_per_gpu(case) * 1e12 / peak


def tokens_per_s(case: Case) -> float:
    """Tokens per second of the whole cluster."""
    work = case.layout.work
    return scalar(work.seq_tokens) * scalar(work.global_batch) / scalar(step(case.layout).step_time_s)


def gpu_hours(case: Case) -> float:
    """GPU-hours to train on ``numbers.tokens`` tokens."""
    return case.numbers["tokens"] / tokens_per_s(case) * case.layout.n_gpus / 3600


def bubble(case: Case) -> float:
    """Seconds of pipeline bubble per step."""
    return scalar(step(case.layout).bubble_s)


def optimizer(case: Case) -> float:
    """Seconds of the optimizer step."""
    return scalar(step(case.layout).optimizer_s)


def narrow_speedup(case: Case) -> float:
    """Step time over that with all-to-alls at ``numbers.dim_scale`` of the width; its projections run at the layout's compute rate."""
    layout, model, scale = case.layout, model_of(case.layout), case.numbers["dim_scale"]
    cost = step(layout)
    whole, messages, compute = (scalar(part) for part in (cost.step_time_s, cost.exposed_ep_s, cost.compute_s))
    tokens = scalar(layout.work.seq_tokens) * scalar(layout.work.global_batch)
    extra = scalar(narrow_flops(tokens, model.hidden, model.n_moe_layers, dim_scale=scale)) / layout.n_gpus
    return whole / (whole - (1 - scale) * messages + compute * extra / scalar(cost.hardware_flops))


def all_to_all_growth(case: Case) -> float:
    """Exposed all-to-all seconds of the layout over the baseline's (fewer experts per token)."""
    return scalar(step(case.layout).exposed_ep_s) / scalar(step(_baseline(case)).exposed_ep_s)


def balanced_speedup(case: Case) -> float:
    """Attention's speed-up from splitting a causal sequence over cp ranks, messages apart: one GPU's time over the slowest rank's."""
    layout = case.layout
    model, system = model_of(layout), system_of(layout)
    alone = dataclasses.replace(layout.plan, cp=1, cp_kind="none")

    def attention_s(plan: ParallelPlan) -> float:
        return scalar(layer_time(model, plan, shard(model, plan, layout.work), system).attention_fwd_s)

    return attention_s(alone) / attention_s(layout.plan)


def cp_efficiency(case: Case) -> float:
    """Attention with its messages against the ideal split: one GPU's attention / cp over a rank's attention and exposed hops.

    ``words.phase``: ``fwd``, or ``fwd+bwd``.
    """
    layout = case.layout
    alone = dataclasses.replace(layout.plan, cp=1, cp_kind="none")
    both = case.words["phase"] == "fwd+bwd"
    return _context_s(layout, alone, both) / scalar(layout.plan.cp) / _context_s(layout, layout.plan, both)


def _context_s(layout: Layout, plan: ParallelPlan, both: bool) -> float:
    """One layer's attention core on one rank: kernels, and the messages they cannot hide."""
    model, system = model_of(layout), system_of(layout)
    ops = attention_ops(model, plan, shard(model, plan, layout.work), 0)
    total = 0.0
    for phase in (ops, backward(ops)) if both else (ops,):
        lanes = {"compute": 0.0, "cp": 0.0}
        for op in phase:
            lanes[op.lane] += scalar(op.count * np.asarray(price(op.work, system)))
        total += lanes["compute"] + scalar(exposed(lanes["cp"], lanes["compute"], system.framework.overlap_cp_frac))
    return total


def state_scan_ms(case: Case) -> float:
    """Milliseconds of an All-Scan of one layer's fp32 state over the layout's GPUs, at its best number of blocks."""
    network, state = system_of(case.layout).network, _state_bytes(case)
    return 1e3 * best_all_scan_s(network, state, case.layout.n_gpus)


def state_gather_ms(case: Case) -> float:
    """Milliseconds of the all-gather of the same states."""
    network, state = system_of(case.layout).network, _state_bytes(case)
    return 1e3 * scalar(gather_states_s(network, state, case.layout.n_gpus))


def _state_bytes(case: Case) -> float:
    n = case.numbers
    return scalar(linear_state(1.0, n["heads"], n["key_dim"], n["value_dim"], element_bytes=4.0))


def _baseline(case: Case) -> Layout:
    if case.baseline is None:
        raise BadInput(f"case {case.name}: predictor {case.predictor} needs a [baseline]")
    return case.baseline
