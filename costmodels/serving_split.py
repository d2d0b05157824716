"""Attention and FFN of a serving replica on GPUs of their own (AFD): micro-batches in flight between them, each stage priced alone.

Attention's ranks keep the KV cache and the attention weights, FFN's the dense FFNs and experts. Per layer a micro-batch visits attention,
the way out, the FFN and the way back; with ``m`` of them in flight a layer takes ``max(m · longest stage, sum of the stages)``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from . import serving_ops as ops
from .arrays import Array
from .expert_balance import most_loaded
from .gemm_curve import weight_bytes
from .params import count_params
from .serving import Reach, decode_secant
from .serving_context import prefill_attention_s, spread
from .serving_layers import attention_linear_s
from .serving_ops import ServeSystem, sequence_s
from .step_times import PS

OUT_BYTES, BACK_BYTES = 1.0, 2.0
"""A hidden element on the way out and back: 8 bits, then 16. Source: Step-3 (2025), section 5: FP8 to the FFN, BF16 back."""


def attention_side(plan: EnginePlan) -> EnginePlan:
    """The plan of the attention GPUs alone; BadInput when it cannot be split."""
    if plan.pp > 1:
        raise BadInput(f"pp={plan.pp}: attention apart from FFN pipelines its micro-batches itself; use pp=1 with more dp or tp")
    return dataclasses.replace(plan, attention_ffn=None, ep=1)


def ffn_side(plan: EnginePlan) -> EnginePlan:
    """The FFN GPUs as a plan: ``plan.ep`` groups of them, whole experts dealt over the groups; inside a group tensor parallelism.

    A group is home to ``1/ep`` of the tokens: dense and shared FFNs run there. BadInput when the plan has no ``attention_ffn``.
    """
    split = plan.attention_ffn
    if split is None:
        raise BadInput("the plan has no attention_ffn: nothing to split")
    n = split.n_ffn_gpus
    return dataclasses.replace(plan, attention_ffn=None, tp=n // plan.ep, dp=plan.ep, pp=1, cp=1)


def attention_layer_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, tokens: Array, sustained: bool = False) -> Array:
    """One layer of ``tokens`` on the attention GPUs, but for attention over the cache: projections, norms and their all-reduce."""
    one = spread(attention_side(plan))
    t = np.ceil(tokens / one.dp)
    reduce = ops.tp_all_reduce_s(system, 2.0 * t * model.hidden, one.tp)
    weights = count_params(model).attn_per_layer / one.tp
    n_products = 2 + int(model.q_lora_rank > 0) + 2 * int(model.is_mla)
    linear = (
        sustained_s(system, t * weights, weights, plan.weight_dtype, n_products) if sustained else attention_linear_s(model, one, system, t)
    )
    return linear + ops.norms_s(model, one, system, t) + reduce


def ffn_layer_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, tokens: Array, moe: bool, sustained: bool = False) -> Array:
    """One FFN or MoE layer of ``tokens`` on the FFN GPUs; ``sustained`` adds router, activation and permutation as they are measured."""
    side, p = ffn_side(plan), count_params(model)
    t = np.ceil(tokens / side.dp)
    if not sustained:
        own = ops.own_experts_s(model, side, system, t) if moe else ops.dense_ffn_s(model, side, system, t)
        return own + ops.moe_s(model, side, system, t * side.dp) if moe else own
    stream, n_in = system.roofline.stream_s, 2.0 if model.gated_mlp else 1.0
    home = (p.shared_per_layer if moe else p.dense_ffn_per_layer) / side.tp
    total = np.zeros_like(t)
    if home:
        width = (model.shared_hidden if moe else model.ffn_hidden) / side.tp
        total = sustained_s(system, t * home, home, plan.weight_dtype, 2) + stream(2 * (n_in + 1) * t * width)
    if not moe:
        return total
    router = system.roofline.gemm_s(t, model.n_experts, model.hidden) + stream(4 * t * model.n_experts)
    pairs, busy = most_loaded(model.n_experts, model.top_k, plan.expert_skew, plan.ep, plan.redundant_experts, t * side.dp)
    each = p.expert / side.tp
    routed = sustained_s(system, pairs * each, busy * each, plan.experts_in, 2)
    return total + router + routed + stream(2 * pairs * ((n_in + 1) * model.moe_ffn_hidden / side.tp + 3 * model.hidden))


def sustained_s(system: ServeSystem, products: Array, weights: Array | float, dtype: str, n_kernels: int = 1) -> Array:
    """Seconds of kernels written for their engine: ``n·launch + max(2·products/peak, weight bytes/bandwidth)``.

    Peak and bandwidth are met to the fractions that the card's 16-bit products reach on large shapes, and launches take as long (family
    ``gemm.bf16``). ``products`` are multiply-adds.
    """
    gpu, c = system.accelerator, system.roofline.calibration.fit("gemm.bf16").coefficients
    peak = gpu.peak_flops_per_s(dtype.removesuffix("_block")) * c["compute_frac"]
    bound = np.maximum(2 * products / peak, weight_bytes(dtype) * weights / (gpu.hbm_bytes_per_s * c["memory_frac"]))
    out: Array = n_kernels * c["launch_s"] + bound
    return out


def ways_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, tokens: Array, moe: bool) -> tuple[Array, Array]:
    """Seconds out to the FFN and back for ``tokens`` of one layer.

    A token goes to its home group and each other group that has one of its experts, ``1 + (ep − 1)·(1 − (1 − 1/ep)^k)`` copies, one GPU
    of the group receiving it; the group's GPUs then gather what they received. Back they scatter their sums and send the same rows. The
    busier of senders and receivers counts.
    """
    net, side, group = system.network, attention_side(plan), ffn_side(plan)
    copies = 1 + (group.dp - 1) * (1 - (1 - 1 / group.dp) ** model.top_k) if moe else 1.0
    sent = tokens * model.hidden * copies
    most = sent / min(side.n_gpus, group.n_gpus)
    within = side.n_gpus + group.n_gpus <= system.cluster.gpus_per_node
    stride, rows = 1 if within else system.cluster.gpus_per_node, sent / group.dp
    out = net.p2p_s(OUT_BYTES * most, stride) + net.all_gather_s(OUT_BYTES * rows, group.tp, 1)
    back = net.reduce_scatter_s(BACK_BYTES * rows, group.tp, 1) + net.p2p_s(BACK_BYTES * most, stride)
    return out, back


def layer_s(attention: Array, out: Array, ffn: Array, back: Array, micro_batches: int) -> Array:
    """Seconds of a layer for all micro-batches: ``max(m·max(stage), Σ stage)``; the stages are those of one micro-batch."""
    longest = np.maximum(np.maximum(attention, ffn), np.maximum(out, back))
    return np.maximum(micro_batches * longest, attention + out + ffn + back)


@dataclass(slots=True, kw_only=True)
class SplitTimes:
    """Step times of a split replica: tables over a micro-batch's tokens, joined per step, so no step is a sum of its parts.

    ``linear`` is one layer's seconds on the attention GPUs by tokens of a micro-batch (0 first). ``ffn`` holds, for each kind of layer, how
    many there are and seconds out, in the FFN and back. ``decode`` is all layers' attention by decodes of the whole step,
    ``decode_slope`` the same per cached token, ``prefill`` that of a chunk; ``fixed`` is head and host time of a step by sequences.
    """

    n_layers: int
    micro_batches: int
    linear: Array
    ffn: tuple[tuple[int, Array, Array, Array], ...]
    decode: Array
    decode_slope: Array
    prefill: Array
    prefill_slope: Array
    fixed: Array
    swap: int = 0

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest step the tables reach."""
        return (len(self.linear) - 1) * self.micro_batches

    def step_ps(self, n_decodes: int, kv_sum: int, chunks: list[tuple[int, int]]) -> int:
        """One step: ``n_decodes`` sequences reading ``kv_sum`` cached tokens and prompt chunks (tokens, past), dealt over micro-batches."""
        tokens = n_decodes + sum(c for c, _ in chunks)
        if not tokens:
            return 0
        m = min(self.micro_batches, tokens)
        at = -(-tokens // m)
        cached = self.decode[n_decodes] + self.decode_slope[n_decodes] * kv_sum
        cached += sum(self.prefill[c] + self.prefill_slope[c] * past for c, past in chunks)
        attention = self.linear[at] + cached / (m * self.n_layers)
        total = 0.0
        for layers, out, ffn, back in self.ffn:
            total += layers * float(layer_s(attention, out[at], ffn[at], back[at], m))
        return round((total + float(self.fixed[n_decodes])) * PS)


def split_times(model: ModelSpec, plan: EnginePlan, system: ServeSystem, reach: Reach, sustained: bool = False) -> SplitTimes:
    """Tables of a replica whose FFN has GPUs of its own, up to ``reach``. Raises BadInput when the plan cannot be split.

    Products are priced by the kernels measured in public engines, or with ``sustained`` as if written for this one (``sustained_s``).
    """
    side, split = attention_side(plan), plan.attention_ffn
    if split is None:
        raise BadInput("the plan has no attention_ffn: nothing to split")
    m = split.micro_batches
    largest = -(-reach.tokens // m)
    sizes = _sizes(largest)
    every = np.arange(largest + 1)

    def table(price: Array) -> Array:
        out = np.interp(every, sizes, price)
        out[0] = 0.0
        return out

    frac, kinds = system.engine.kernel_frac, []
    for n, moe in ((model.n_layers - model.n_moe_layers, False), (model.n_moe_layers, True)):
        if n:
            out, back = ways_s(model, plan, system, sizes, moe)
            kinds.append((n, table(out), table(ffn_layer_s(model, plan, system, sizes, moe, sustained) * frac), table(back)))
    seqs = np.arange(reach.seqs + 1, dtype=np.float64)
    # a micro-batch holds a share of the sequences: m calls on fewer of them read what one call on all would
    some = np.maximum(np.ceil(seqs / m), 1)
    fixed, slope = decode_secant(model, side, system, some, reach)
    decode = m * fixed
    decode[0] = slope[0] = 0.0
    chunks = _sizes(reach.chunk)
    start = prefill_attention_s(model, side, system, chunks, 0.0)
    after = prefill_attention_s(model, side, system, chunks, reach.past_tokens)
    whole = np.arange(reach.chunk + 1)
    prefill = np.interp(whole, chunks, start)
    prefill_slope = np.interp(whole, chunks, np.maximum(after - start, 0.0) / reach.past_tokens)
    prefill[0] = prefill_slope[0] = 0.0
    host = system.engine.step_cpu_s + sequence_s(plan, system) * np.ceil(seqs / spread(side).dp)  # one scheduler a dp rank
    return SplitTimes(
        n_layers=model.n_layers,
        micro_batches=m,
        linear=table(attention_layer_s(model, plan, system, sizes, sustained) * frac),
        ffn=tuple(kinds),
        decode=decode,
        decode_slope=slope,
        prefill=prefill,
        prefill_slope=prefill_slope,
        fixed=ops.head_s(model, spread(side), system, np.maximum(seqs, 1)) + host,
    )


def _sizes(largest: int) -> Array:
    """Every size up to 64, then 2 % steps, and the largest."""
    coarse = np.geomspace(64, max(largest, 65), 2 + int(np.log(max(largest, 65) / 64) / 0.02))
    return np.unique(np.concatenate([np.arange(1.0, min(largest, 64) + 1), np.rint(coarse[coarse <= largest]), [float(largest)]]))
