"""Time of a serving step that checks guessed tokens: tables over (draft tokens, batch), what drafting costs, and the best γ by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..scenarios import registry
from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from ..scenarios.serving_parts import Speculation
from .acceptance import chain_tokens
from .arrays import Array, Reals, as_integers
from .serving import Reach, decode_secant, step_times
from .serving_context import spread
from .serving_layers import layers_s
from .serving_memory import ServeMemory, kv_bytes_per_token, weights_bytes
from .serving_ops import ServeSystem, head_s
from .step_times import PS, StepTimes

KEEP_FRAC = 0.03
"""``gamma_table`` keeps the γ of the next smaller batch while it loses less than this to the best one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTimes:
    """``step = linear[n·q + prompt tokens] + fixed[γ][n] + per_kv[γ][n]·kv_sum + Σ_chunks (prefill[c] + prefill_slope[c]·past) + shared``.

    In ps; ``shared`` as in ``StepTimes``.

    A step of ``n`` sequences with γ guesses each checks ``q = 1 + γ·width`` tokens a sequence; ``kv_sum`` counts cached tokens, those
    ``n·q`` included. Without prompts ``layers[γ][n]`` stands for ``linear[n·q]``: engines whose CUDA graphs are for decoding alone capture
    them for ``q`` tokens a sequence. ``layers``, ``fixed`` and ``per_kv`` hold γ = 0 … ``most_draft_tokens``, the latter two with drafting;
    row 0 is ``times`` without speculation. In ``times`` a prompt chunk also pays the draft's own pass over it.
    """

    times: StepTimes
    layers: list[Sequence[int]]
    fixed: list[Sequence[int]]
    per_kv: list[Sequence[int]]
    width: int

    def step_ps(self, n_decodes: int, draft_tokens: int, kv_sum: int, chunks: list[tuple[int, int]]) -> int:
        """One step: ``n_decodes`` sequences with ``draft_tokens`` guesses each, and prompt chunks as (tokens, past)."""
        t, tokens = self.times, n_decodes * (1 + draft_tokens * self.width) + sum(c for c, _ in chunks)
        attention = -(-sum(t.prefill[c] + t.prefill_slope[c] * past for c, past in chunks) // t.ranks)
        if n_decodes and chunks:
            attention += t.shared_ps(n_decodes, kv_sum, max(c for c, _ in chunks))
        layers = t.linear[tokens] if chunks else self.layers[draft_tokens][n_decodes]
        return layers + self.fixed[draft_tokens][n_decodes] + self.per_kv[draft_tokens][n_decodes] * kv_sum + attention


def query_tokens(speculation: Speculation, draft_tokens: int) -> int:
    """Tokens one sequence sends through the model in a step: ``1 + γ``, or ``1 + γ·width`` of a tree."""
    return 1 + draft_tokens * (speculation.tree_width if speculation.method == "tree" else 1)


def most_draft_tokens(speculation: Speculation) -> int:
    """The largest γ that any step may use."""
    return max([gamma for _, gamma in speculation.gamma_by_batch] or [speculation.draft_tokens])


def depth_acceptance(speculation: Speculation, accept_frac: Reals) -> Array:
    """Chance that a depth of the draft goes on: α, or ``1 − (1 − α)^width`` when a tree offers several. Source: RSD (2024), k siblings."""
    width = speculation.tree_width if speculation.method == "tree" else 1
    out: Array = 1 - (1 - np.asarray(accept_frac, np.float64)) ** width
    return out


def verify_times(model: ModelSpec, plan: EnginePlan, system: ServeSystem, reach: Reach, times: object) -> VerifyTimes:
    """Tables of the plan's speculation beside ``times``, its plain ones (long enough for ``n·q`` tokens).

    Attention reads the cache once for the ``q`` tokens of a sequence, which share it as more query heads of a group do; logits are
    taken for each. Recurrent states are read once and written for each token. Drafting is γ passes of ``draft_model`` (of ``tree_width``
    rows a sequence), priced as the model is but without an engine's host time, or ``draft_frac`` of a one-token step each. Raises
    BadInput without a speculation or where attention is apart from FFN, UnknownName for an unknown draft model.
    """
    spec = plan.speculation
    if spec is None:
        raise BadInput("the plan has no speculation to price")
    if not isinstance(times, StepTimes):
        raise BadInput("speculation is not priced with attention apart from FFN; drop the speculation or attention_ffn")
    seqs, wide = np.arange(reach.seqs + 1), spec.tree_width if spec.method == "tree" else 1
    if spec.draft_model:
        drafter, quiet = registry.model(spec.draft_model), _without_host(system)
        draft = step_times(drafter, replace(plan, speculation=None), quiet, reach)
        pass_fixed = _graphed(drafter, plan, quiet, reach, draft, wide) + np.array(draft.decode)
        pass_kv = np.array(draft.decode_slope)
    else:
        draft = None
        pass_fixed = np.rint(spec.draft_frac * (_graphed(model, plan, system, reach, times, wide) + np.array(times.decode)))
        pass_kv = np.rint(spec.draft_frac * np.array(times.decode_slope))
    layers: list[Sequence[int]] = [as_integers(_graphed(model, plan, system, reach, times, 1))]
    fixed, per_kv = [times.decode], [times.decode_slope]
    base = _check_s(model, plan, system, reach, 1)
    least_fixed, least_slope = np.zeros(len(seqs)), np.zeros(len(seqs))
    for gamma in range(1, most_draft_tokens(spec) + 1):
        q = query_tokens(spec, gamma)
        layers.append(as_integers(np.maximum(_graphed(model, plan, system, reach, times, q), layers[-1])))
        start, slope = _check_s(model, plan, system, reach, q)
        least_fixed = np.maximum(least_fixed, start - base[0])
        least_slope = np.maximum(least_slope, slope - base[1])
        more, steeper = np.rint(least_fixed * PS), np.rint(least_slope * PS)
        more[0] = steeper[0] = 0.0
        fixed.append(as_integers(times.decode + more + gamma * np.where(seqs > 0, pass_fixed, 0)))
        per_kv.append(as_integers(times.decode_slope + steeper + gamma * pass_kv))
    prompts = _with_draft_prompts(times, draft, spec.draft_frac)
    return VerifyTimes(times=prompts, layers=layers, fixed=fixed, per_kv=per_kv, width=query_tokens(spec, 1) - 1)


def _check_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, reach: Reach, q: int) -> tuple[Array, Array]:
    """Attention and head of checking ``q`` tokens a sequence, affine in the cached tokens: (fixed part, seconds a cached token)."""
    some = np.maximum(np.arange(reach.seqs + 1, dtype=np.float64), 1)
    asking = replace(model, n_heads=model.n_heads * q, index_heads=model.index_heads * q)
    start, slope = decode_secant(asking, plan, system, some, reach, q)
    return start + head_s(model, spread(plan), system, some * q), slope


def _without_host(system: ServeSystem) -> ServeSystem:
    """The same, but for the engine's own time a step: a draft's passes follow each other on the GPU."""
    return replace(system, engine=replace(system.engine, step_cpu_s=0.0, ranks_cpu_s=0.0, sequence_cpu_s=0.0, quantised_sequence_s=0.0))


def _graphed(model: ModelSpec, plan: EnginePlan, system: ServeSystem, reach: Reach, times: StepTimes, q: int) -> Array:
    """Layers of a step of ``q`` tokens in each of n sequences and no prompt, in ps, for n = 0 … ``reach.seqs``.

    As ``times`` has them for ``n·q`` tokens; an engine that captures graphs for decoding alone pads n up to the next of them instead.
    """
    n, engine = np.arange(reach.seqs + 1), system.engine
    plain: Array = np.array(times.linear, np.float64)[np.minimum(n * q, len(times.linear) - 1)]
    if q == 1 or not engine.graphs_decode_only or not engine.graph_tokens:
        return plain
    ranks, graphs = plan.dp * plan.cp, np.array(sorted(engine.graph_tokens))
    each = -(-n // ranks)
    padded = np.minimum(graphs[np.minimum(np.searchsorted(graphs, each), len(graphs) - 1)], max(-(-reach.seqs // ranks), 1))
    whole = layers_s(model, spread(plan), system, 1.0 * ranks * q * padded) * engine.kernel_frac * PS
    return np.where((n > 0) & (each <= graphs[-1]), whole, plain)


def _with_draft_prompts(times: StepTimes, draft: StepTimes | None, draft_frac: float) -> StepTimes:
    """Prompt tables plus the draft's own pass over each chunk, layers and attention."""
    chunks = len(times.prefill)
    if draft is None:
        start = np.rint(draft_frac * (np.array(times.linear[:chunks]) + np.array(times.prefill)))
        after = np.rint(draft_frac * np.array(times.prefill_slope))
    else:
        start, after = np.array(draft.linear[:chunks]) + np.array(draft.prefill), np.array(draft.prefill_slope)
    return replace(times, prefill=as_integers(times.prefill + start), prefill_slope=as_integers(times.prefill_slope + after))


def memory_with_draft(memory: ServeMemory, plan: EnginePlan, block_tokens: int) -> ServeMemory:
    """The replica's memory when a draft model's weights and cache live beside it: the pool shrinks to what both caches need a token.

    Unchanged when no draft model is named. Raises BadInput when no block is left.
    """
    if plan.speculation is None or not plan.speculation.draft_model:
        return memory
    draft, alone = registry.model(plan.speculation.draft_model), replace(plan, speculation=None)
    if draft.special_layers:
        raise BadInput(f"draft_model={draft.name} has {draft.special_layers}, whose caches are not counted beside a model's; take another")
    weights, per_token = weights_bytes(draft, alone), memory.kv_bytes_per_token + kv_bytes_per_token(draft, alone)
    blocks = plan.kv_blocks or int((memory.kv_bytes - weights) // (per_token * block_tokens)) * plan.dp
    if blocks < 1:
        raise BadInput(
            f"draft_model={draft.name} needs {weights / 2**30:.1f} GiB beside the model and {memory.kv_bytes / 2**30:.1f} GiB are left for "
            "the KV cache: no room; take a smaller draft or more GPUs"
        )
    return replace(
        memory,
        weights_bytes=memory.weights_bytes + weights,
        kv_bytes_per_token=per_token,
        kv_blocks=blocks,
        kv_bytes=blocks / plan.dp * per_token * block_tokens,
    )


def gamma_table(verify: VerifyTimes, speculation: Speculation, max_seqs: int, kv_tokens: float) -> tuple[tuple[int, int], ...]:
    """(largest batch, γ) rows, rising: the γ of most expected tokens a second for sequences of ``kv_tokens`` cached tokens each.

    A row goes on while its γ stays within ``KEEP_FRAC`` of the best; batches whose steps the tables do not reach have γ = 0.
    Source: SmartSpec (Liu et al. 2024): goodput ``n·(1 − α^(γ+1))/(1 − α) / T(n, γ)``.
    """
    alpha = float(depth_acceptance(speculation, speculation.accept_frac))
    gammas = np.arange(len(verify.fixed))
    yielded = np.array([chain_tokens(alpha, float(g)) for g in gammas])
    n = np.arange(1, max_seqs + 1)
    queries = n * (1 + gammas[:, None] * verify.width)
    top = len(verify.times.linear) - 1
    cached = n * kv_tokens + queries
    step = np.array(verify.layers)[:, n] + np.array(verify.fixed)[:, n] + np.array(verify.per_kv)[:, n] * cached
    rate = np.where(queries <= top, yielded[:, None] / step, 0.0)
    rows: list[tuple[int, int]] = []
    chosen = -1
    for at, best in enumerate(rate.max(0)):
        if chosen < 0 or rate[chosen, at] < best * (1 - KEEP_FRAC):
            chosen = int(rate[:, at].argmax())
        if rows and rows[-1][1] == chosen:
            rows.pop()
        rows.append((at + 1, chosen))
    return tuple(rows)
