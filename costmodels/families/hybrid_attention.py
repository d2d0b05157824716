"""Some layers attend in full, the others to a window, to every l-th token, or to a recurrent state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...scenarios.errors import BadInput
from ..op import Floats
from ..step import Stage, Step, layer_params_active, require_positive

STAGE = Stage.MODEL


def hybrid_attention(
    step: Step,
    *,
    full_layer_frac: float = 0.0,
    window_tokens: int = 0,
    stride: int = 0,
    state_dim: int = 0,
    chunk_tokens: int = 64,
    gates: int = 0,
    kernel_frac: float = 1.0,
) -> Step:
    """Cost of the cheap layers in place of full attention; exactly one of window, stride and state_dim is given.

    Per cheap layer, prefill: window ``w`` keys a query (``~ w/(N/2)`` of causal); stride ``l``: ``1/l`` of the pairs; state of ``d`` values
    per query channel: ``6 N d² + 3 N C d + N C²`` FLOPs a head against ``2 N² d`` of full attention. Cache: ``min(N, w)`` tokens,
    ``N/l`` tokens, or the state ``a d_qk d`` alone. ``gates`` counts further h x h projections of a cheap layer; ``kernel_frac`` is
    the cheap kernel's rate over the full one's.
    Source: Kimi Linear (2025), eq. 13-14; RAT (2025); LongGen (2024).
    """
    require_positive("hybrid_attention", kernel_frac=kernel_frac, chunk_tokens=chunk_tokens)
    if sum(map(bool, (window_tokens, stride, state_dim))) != 1:
        raise BadInput(f"hybrid_attention: window_tokens={window_tokens}, stride={stride}, state_dim={state_dim}; give exactly one of them")
    n = np.asarray(step.kv_tokens, float)
    cheap = 1.0 - full_layer_frac
    work, cache = _shares(step, n, window_tokens, stride, state_dim, chunk_tokens)
    state: Floats = 0.0
    if state_dim:  # read and written by every decode step, held always
        heads, qk = step.model.n_heads, step.model.qk_dim
        state = cheap * step.model.n_layers * heads * qk * state_dim * 2.0 * np.asarray(step.n_seqs)
    kept = full_layer_frac + cheap * cache
    wider = cheap * step.model.n_layers * gates * step.model.hidden**2 / layer_params_active(step.model)
    return replace(
        step,
        linear_flops=step.linear_flops * (1.0 + wider),
        weight_bytes=step.weight_bytes * (1.0 + wider),
        held_weight_bytes=step.held_weight_bytes * (1.0 + wider),
        attention_flops=step.attention_flops * (full_layer_frac + cheap * work / kernel_frac),
        kv_bytes=step.kv_bytes * kept,
        held_kv_bytes=step.held_kv_bytes * kept + state,
        other_bytes=step.other_bytes + 2.0 * state,
    )


def _shares(step: Step, n: Floats, window: int, stride: int, state_dim: int, chunk: int) -> tuple[Floats, Floats]:
    """(attention FLOPs, cache) of a cheap layer over those of a full one."""
    one_token = step.kind == "decode"
    if window:
        kept = np.minimum(1.0, window / n)
        return (kept if one_token else np.minimum(1.0, kept * (2.0 - kept))), kept
    if stride:
        return np.ones_like(n) / stride, np.ones_like(n) / stride
    d, full = float(state_dim), float(step.model.qk_dim + step.model.v_dim)
    per_token = (4.0 * d * d) if one_token else (6.0 * d * d + 3.0 * chunk * d + chunk**2)
    return np.minimum(1.0, per_token / (2.0 * full * n if one_token else full * n)), np.zeros_like(n)
