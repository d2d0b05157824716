"""Builds the step-time tables of one serving replica from the calibrated roofline and network."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from .arrays import Array, as_integers
from .serving_context import decode_attention_s, prefill_attention_s, spread
from .serving_layers import layers_s, own_layers_s
from .serving_memory import kv_bytes_per_token
from .serving_mixed import beside_prompts, idle_s, longest_s, shares_a_call
from .serving_ops import ServeSystem, head_s, sequence_s
from .step_times import PS, StepTimes

EXACT_TOKENS = 1024
"""Step sizes up to this are priced one by one; larger ones every 32 tokens and interpolated."""
COARSE_TOKENS = 65_536
"""From here on every 512: steps of many attention ranks."""
KINK_LENGTHS = 17
"""Cached lengths through which a price with a bend is fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far the tables must go and where the affine parts are anchored.

    ``tokens`` is the largest step, ``chunk`` the largest prompt piece, ``seqs`` the most sequences; decode attention is the secant
    through cached lengths ``kv_low_tokens`` and ``kv_high_tokens``, prefill attention the one through past 0 and ``past_tokens``.
    ``excess_tokens[n]`` is how many tokens more than their mean the longest of ``n`` decodes has cached (none: all alike).
    """

    tokens: int
    chunk: int
    seqs: int
    kv_low_tokens: float = 256.0
    kv_high_tokens: float = 4096.0
    past_tokens: float = 8192.0
    excess_tokens: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """Seconds of a step by part: ``linear`` by its tokens; attention's ``fixed`` part and ``slope`` a cached token, ``head`` and ``host``
    by decoding sequences; ``prefill`` and ``prefill_slope`` of a chunk; ``own``, ``beside``, ``beside_slope`` and ``idle`` as in
    ``StepTimes``; ``swap_s`` of one KV block over the host link."""

    linear: Array
    fixed: Array
    slope: Array
    head: Array
    host: Array
    prefill: Array
    prefill_slope: Array
    own: Sequence[int]
    swap_s: float
    beside: Array
    beside_slope: Array
    idle: Array

    def tables(self, decode: Array, ranks: int) -> StepTimes:
        """Whole picoseconds on so many attention data parallel ranks, ``decode`` being what a step takes by decoding sequences."""
        return StepTimes(
            linear=whole_ps(self.linear),
            decode=whole_ps(decode),
            decode_slope=whole_ps(self.slope),
            prefill=whole_ps(self.prefill),
            prefill_slope=whole_ps(self.prefill_slope),
            ranks=ranks,
            own=self.own,
            swap=round(self.swap_s * PS),
            beside=whole_ps(self.beside),
            beside_slope=whole_ps(self.beside_slope),
            idle=whole_ps(self.idle),
        )


def step_times(model: ModelSpec, plan: EnginePlan, system: ServeSystem, reach: Reach) -> StepTimes:
    """Tables of ``StepTimes`` for every step up to ``reach``."""
    parts = step_parts(model, plan, system, reach)
    return parts.tables(parts.fixed + parts.head + parts.host, plan.dp)


def step_parts(model: ModelSpec, plan: EnginePlan, system: ServeSystem, reach: Reach) -> StepParts:
    """What the tables of every step up to ``reach`` are made of.

    Steps pad up to the engine's CUDA-graph sizes; a larger step launches its kernels one by one, which bounds it from below. So does,
    where graphs are for decoding only, a step of more tokens than sequences: it holds a prompt.
    """
    sizes, engine = _grid(reach.tokens), system.engine
    ranks = plan.dp * plan.cp
    each = np.ceil(sizes / ranks)  # graphs are captured by the tokens of one attention rank
    graphs = engine.graph_tokens
    if engine.graphs_decode_only:
        most = -(-reach.seqs // ranks)
        graphs = (*(g for g in graphs if g < most), *((most,) if graphs and most <= max(graphs) else ()))
    linear = layers_s(model, spread(plan), system, ranks * _padded(each, graphs)) * engine.kernel_frac
    kernels = launched_kernels(model, engine.kernels_per_layer)
    large = each > max(graphs, default=0)
    if engine.sums_prompts and plan.dp > 1:
        linear = np.where(large, layers_s(model, spread(plan), system, sizes, prompts=True) * engine.kernel_frac, linear)
    linear, eager = linear + engine.kernel_gap_s * kernels, engine.launch_s * kernels
    linear = np.where(large, np.maximum(linear, eager), linear)
    all_linear = np.interp(np.arange(reach.tokens + 1), sizes, linear)
    all_linear[0] = 0.0

    seqs = np.arange(reach.seqs + 1, dtype=np.float64)
    some = np.maximum(seqs, 1)
    fixed, slope = decode_secant(model, plan, system, some, reach)
    fixed[0] = decode_attention_s(model, plan, system, some[:1], 1.0)[0]
    slope[0] = 0.0

    chunks = _grid(reach.chunk)
    per_rank = np.ceil(chunks / plan.pp)
    before = (chunks - per_rank) / 2  # of a chunk cut into pp pieces an average one has half the others before it
    slow = engine.prefill_attention_frac
    start = slow * prefill_attention_s(model, plan, system, per_rank, before)
    after = slow * prefill_attention_s(model, plan, system, per_rank, before + reach.past_tokens)
    every = np.arange(reach.chunk + 1)
    prefill = np.interp(every, chunks, start)
    prefill_slope = np.interp(every, chunks, np.maximum(after - start, 0) / reach.past_tokens)
    prefill[0] = prefill_slope[0] = 0.0
    own: Sequence[int] = []
    if plan.dp > 1:
        each = own_layers_s(model, spread(plan), system, np.ceil(sizes / plan.pp)) * engine.kernel_frac
        own = whole_ps(np.interp(np.arange(reach.tokens + 1), sizes, each) * (np.arange(reach.tokens + 1) > 0))
    beside, beside_slope, idle = np.zeros_like(seqs), np.zeros_like(seqs), np.zeros_like(prefill)
    if shares_a_call(model, plan, system):
        beside, beside_slope = beside_prompts(model, plan, system, some, (fixed, slope), reach.kv_low_tokens, reach.kv_high_tokens)
        if reach.excess_tokens:
            beside = beside + longest_s(model, system, np.array(reach.excess_tokens[: reach.seqs + 1]))
        idle = idle_s(model, plan, system, every.astype(np.float64))
        beside[0] = beside_slope[0] = idle[0] = 0.0
    block_bytes = kv_bytes_per_token(model, plan) * (plan.block_tokens or system.engine.block_tokens)
    return StepParts(
        linear=all_linear,
        fixed=fixed,
        slope=slope,
        head=head_s(model, spread(plan), system, some),
        host=engine.step_cpu_s
        + engine.ranks_cpu_s * (plan.tp * plan.pp > 1)
        + sequence_s(plan, system) * np.ceil(seqs / plan.dp),  # a scheduler for each dp rank
        prefill=prefill,
        prefill_slope=prefill_slope,
        own=own,
        swap_s=float(system.roofline.host_copy_s(block_bytes)),
        beside=beside,
        beside_slope=beside_slope,
        idle=idle,
    )


def decode_secant(
    model: ModelSpec, plan: EnginePlan, system: ServeSystem, seqs: Array, reach: Reach, queries: int = 1
) -> tuple[Array, Array]:
    """Attention of ``seqs`` decoding sequences as an affine price of the tokens they have cached: (fixed seconds, seconds a token).

    The secant through both ends of ``reach``; where sparse attention bends the price in between (``index_top_k``), the least-squares line
    over KINK_LENGTHS lengths, so that sequences that pass through all of them are priced right on average.
    """
    if reach.kv_low_tokens < model.index_top_k < reach.kv_high_tokens:
        lengths = np.linspace(reach.kv_low_tokens, reach.kv_high_tokens, KINK_LENGTHS)
        prices = np.stack([decode_attention_s(model, plan, system, seqs, kv, queries) for kv in lengths])
        per_length = np.maximum(((lengths - lengths.mean())[:, None] * prices).sum(0) / np.square(lengths - lengths.mean()).sum(), 0.0)
        return np.maximum(prices.mean(0) - per_length * lengths.mean(), 0.0), per_length / seqs
    ends = (reach.kv_low_tokens, reach.kv_high_tokens)
    low, high = (decode_attention_s(model, plan, system, seqs, kv, queries) for kv in ends)
    slope = (high - low) / (seqs * (reach.kv_high_tokens - reach.kv_low_tokens))
    return np.maximum(low - slope * seqs * reach.kv_low_tokens, 0.0), slope


LATENT_KERNELS = 15
EXPERT_KERNELS = 5
SHARED_KERNELS = 5
INDEX_KERNELS = 9
STATE_KERNELS = 7
"""Kernels that latent attention, routed experts and shared experts add to a dense layer's when launched one by one: low-rank products,
their norms, quantisations, rotations and head-wise products; router, top-k, sort and combination less the FFN they replace; two products
with quantisation and activation, and a sum. An indexer: two products, a norm, two rotations, a quantisation, the cache write, the scores,
the selection. A recurrent state: a second product, convolution, gates, five chunk kernels, two norms less rotation, cache write and
attention. Counted from the layers' steps, not measured."""


def launched_kernels(model: ModelSpec, per_layer: int) -> int:
    """Kernels of one eager step: ``per_layer`` of a dense layer, more with latent attention, indexers, states and in MoE layers."""
    experts = EXPERT_KERNELS + SHARED_KERNELS * (model.shared_hidden > 0)
    attention = LATENT_KERNELS * model.is_mla + INDEX_KERNELS * (model.index_top_k > 0)
    mixers = model.n_full_attention_layers * attention + model.n_linear_layers * STATE_KERNELS
    windows = model.n_window_layers * attention
    return model.n_layers * per_layer + mixers + windows + model.n_moe_layers * experts


def _grid(largest: int) -> Array:
    """Every size up to EXACT_TOKENS, then every 32, every 512 from COARSE_TOKENS, and the largest."""
    fine = np.arange(1, min(largest, EXACT_TOKENS) + 1, dtype=np.float64)
    coarse = np.arange(EXACT_TOKENS + 32, min(largest, COARSE_TOKENS), 32, dtype=np.float64)
    wide = np.arange(COARSE_TOKENS, largest, 512, dtype=np.float64)
    return np.unique(np.concatenate([fine, coarse, wide, [float(largest)]]))


def _padded(sizes: Array, graph_tokens: tuple[int, ...]) -> Array:
    """Sizes rounded up to the next captured CUDA graph; those over the largest stay."""
    if not graph_tokens:
        return sizes
    graphs = np.array(sorted(graph_tokens), np.float64)
    at = np.searchsorted(graphs, sizes)
    return np.where(at < len(graphs), graphs[np.minimum(at, len(graphs) - 1)], sizes)


def whole_ps(seconds: NDArray[np.float64]) -> array[int]:
    """Seconds as whole picoseconds, 8 bytes each."""
    return as_integers(seconds * PS)
