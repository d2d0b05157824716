"""Every token's cache is kept somewhere, a decode step reads few: landmarks choose pages, values may wait on the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..step import Stage, Step, require_positive

STAGE = Stage.READ


def kv_retrieval(
    step: Step,
    *,
    read_frac: float = 0.0,
    read_tokens: int = 0,
    page_tokens: int = 8,
    key_rank: int = 0,
    on_host: bool = False,
    hit_frac: float = 0.0,
    select_every: float = 1.0,
    resident_tokens: int = 0,
) -> Step:
    """Decode reads ``k = read_frac · N`` (or ``read_tokens``) tokens, and one key a page (``N/page``) every ``select_every`` steps.

    ``on_host``: the cache lies on the host; the device holds the landmarks, the k tokens in use, ``resident_tokens`` and, with ``key_rank``
    r, all keys as a product of rank r (``r`` elements a token and layer, and ``r`` rows of keys a sequence and layer). Then the link
    carries what the last step did not already have: ``k (1 - hit) / select_every`` tokens, values alone if keys are rebuilt. A layer
    chooses by its own queries, so it waits for them, and they are written to the device before they are read. Rebuilding
    costs ``2 k r d_kv`` FLOPs a layer, and the rebuilt keys are written and read again. Prefill is exact and unchanged.
    Source: ShadowKV (2024); LouisKV (2025).
    """
    require_positive("kv_retrieval", page_tokens=page_tokens, select_every=select_every, read_frac_or_tokens=read_frac + read_tokens)
    if step.kind != "decode":
        return step
    n, model = np.asarray(step.kv_tokens, float), step.model
    k = np.minimum(1.0, read_tokens / n) if read_tokens else np.full_like(n, read_frac)
    whole_read, whole_held = np.asarray(step.kv_bytes), np.asarray(step.held_kv_bytes)
    landmark = 0.5 / page_tokens
    per_token = model.n_kv_heads * (model.qk_dim + model.v_dim)
    low_rank = key_rank / per_token
    factors = k * low_rank
    read = whole_read * (k + landmark / select_every + factors)
    if not on_host:
        return replace(step, kv_bytes=read, held_kv_bytes=whole_held * (1 + landmark), attention_flops=step.attention_flops * k)
    crossing = k * (1.0 - hit_frac) / select_every * (0.5 if key_rank else 1.0)
    rebuilt = 0.5 * k / select_every if key_rank else 0.0 * k
    per_layer = model.n_kv_heads * model.qk_dim * key_rank
    basis = 2.0 * model.n_layers * per_layer * np.asarray(step.n_seqs)  # the keys' side of the product, 16 bits
    held = whole_held * np.minimum(1.0, k + landmark + low_rank + resident_tokens / n) + basis
    return replace(
        step,
        linear_flops=step.linear_flops + 2.0 * k * n / select_every * per_layer * model.n_layers * np.asarray(step.n_seqs),
        kv_bytes=read + whole_read * (rebuilt + crossing) + basis / select_every,
        held_kv_bytes=held,
        attention_flops=step.attention_flops * k,
        awaited_host_bytes=step.awaited_host_bytes + whole_read * crossing,
        host_held_bytes=step.host_held_bytes + whole_held * (0.5 if key_rank else 1.0),
    )
