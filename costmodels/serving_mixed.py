"""What decodes cost more in a step that carries prompts, where the engine's attention serves both in one call."""

from __future__ import annotations

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from .arrays import Array
from .mixed_attention import idle_block_s, idle_blocks, is_measured, key_s
from .serving_attention import mixed_attention_s
from .serving_ops import ServeSystem

LENGTHS = np.linspace(-0.5, 0.5, 5)
"""Where between the low and the high cached length the affine price is drawn, for one sequence."""


def shares_a_call(model: ModelSpec, plan: EnginePlan, system: ServeSystem) -> bool:
    """Whether prompts and decodes of a step share an attention call on this engine, and such calls were measured on this card."""
    plain = not (model.is_mla or model.q_lora_rank or model.index_top_k) and plan.cp == 1
    return plain and system.engine.one_attention_call and is_measured(system.roofline.calibration)


def beside_prompts(
    model: ModelSpec,
    plan: EnginePlan,
    system: ServeSystem,
    seqs: Array,
    alone: tuple[Array, Array],
    kv_low_tokens: float,
    kv_high_tokens: float,
) -> tuple[Array, Array]:
    """Seconds more than ``alone``, affine in the cached tokens: (fixed part, seconds a token), both 0 or more, shape of ``seqs``.

    ``alone`` is the affine price of decoding without prompts. The least-squares line through the mean lengths that batches have: the middle
    of ``kv_low_tokens`` and ``kv_high_tokens``, spread by ``1/√n`` of their distance. Where its fixed part would be negative (a call that
    outgrows L2 between them) the line goes through 0.
    """
    middle = (kv_low_tokens + kv_high_tokens) / 2
    away = LENGTHS[:, None] * (kv_high_tokens - kv_low_tokens) / np.sqrt(seqs)
    lengths = middle + away
    more = np.stack([mixed_attention_s(model, plan, system, seqs, kv) for kv in lengths]) - alone[0] - alone[1] * seqs * lengths
    slope = (away * more).sum(0) / np.square(away).sum(0)
    fixed = more.mean(0) - slope * middle
    slope = np.where(fixed < 0, (lengths * more).sum(0) / np.square(lengths).sum(0), slope)
    flat = slope < 0
    return np.maximum(np.where(flat, more.mean(0), fixed), 0.0), np.where(flat, 0.0, slope) / seqs


def longest_s(model: ModelSpec, system: ServeSystem, excess_tokens: Array) -> Array:
    """Seconds that such a step waits for the longest of its decodes, ``excess_tokens`` longer than their mean. Windows are never longer."""
    out: Array = key_s(system.roofline.calibration) * model.n_full_attention_layers * np.maximum(excess_tokens, 0.0)
    return out


def idle_s(model: ModelSpec, plan: EnginePlan, system: ServeSystem, chunks: Array) -> Array:
    """Seconds one more sequence adds to a step whose longest prompt chunk is ``chunks`` tokens: blocks that find nothing to do."""
    layers = model.n_full_attention_layers + model.n_window_layers
    blocks = idle_blocks(1, -(-model.n_heads // plan.tp), np.ceil(chunks / plan.pp))
    out: Array = idle_block_s(system.roofline.calibration) * layers * blocks / (plan.dp * plan.pp)
    return out
