"""One sequence over several GPUs: what each computes, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from ..op import Floats
from ..sequence_volume import all_gather_kv, linear_state, megatron_sp, ring, token_ring, ulysses
from ..step import Stage, Step, require_positive

STAGE = Stage.SPLIT

SplitKind = Literal["megatron", "ulysses", "ring", "zigzag", "helper", "all-gather", "token-ring", "lasp-1", "lasp-2", "zeco"]


def sequence_split(step: Step, *, ranks: int, kind: SplitKind, state_dim: int = 0, state_bytes: float = 2.0, blocks: int = 1) -> Step:
    """Work and cache divide by ``ranks`` (a plain causal ring: its last rank has twice the mean less its own block); messages are added.

    Softmax kinds: the volumes of ``costmodels.sequence_volume``, per layer and direction; helper is half a ring. State kinds pass the
    ``a d_k d_v`` state of linear attention: LASP-1 in P-1 serial hops, LASP-2 by one all-gather of P-1 states, ZeCO by a pipelined
    scan, ``S (1 + (P-1)/K)`` of K blocks. Training doubles the messages (four times a ring's: gradients travel too).
    Source: the volumes' own; LASP-2 (2025); ZeCO (2025).
    """
    require_positive("sequence_split", ranks=ranks, blocks=blocks)
    per_layer, hops = _message(step, ranks, kind, state_dim, state_bytes, blocks)
    directions = 1.0 if step.kind != "train" else (3.0 if kind in ("ring", "zigzag") else 2.0)
    uneven = 2.0 - 1.0 / ranks if kind == "ring" else 1.0
    layers = step.model.n_layers * directions
    return replace(
        step, linear_flops=step.linear_flops / ranks, attention_flops=step.attention_flops / ranks * uneven, kv_bytes=step.kv_bytes / ranks,
        held_kv_bytes=step.held_kv_bytes / ranks, held_activation_bytes=step.held_activation_bytes / ranks,
        yield_tokens=np.asarray(step.yield_tokens) / (1.0 if step.kind == "decode" else ranks),
        network_bytes=step.network_bytes + layers * per_layer, n_hops=step.n_hops + layers * hops,
    )  # fmt: skip


def _message(step: Step, p: int, kind: SplitKind, state_dim: int, state_bytes: float, blocks: int) -> tuple[Floats, float]:
    """Bytes a rank sends in one layer's forward pass, and how many messages follow each other."""
    m, n = step.model, np.asarray(step.q_tokens * step.n_seqs, float)
    if kind in ("lasp-1", "lasp-2", "zeco"):
        state = linear_state(step.n_seqs, m.n_heads, m.qk_dim, state_dim or m.v_dim, element_bytes=state_bytes)
        sent = {"lasp-1": (p - 1) * state, "lasp-2": (p - 1) * state, "zeco": state * (1 + (p - 1) / blocks)}
        return sent[kind], 1.0 if kind == "lasp-2" else p - 1.0
    volumes: dict[str, tuple[Callable[[], Floats], float]] = {
        "megatron": (lambda: megatron_sp(n, m.hidden, p), 4.0),
        "ulysses": (lambda: ulysses(n, m.n_heads, m.n_kv_heads, m.head_dim, p), 4.0),
        "ring": (lambda: ring(n, m.n_kv_heads, m.head_dim, p), p - 1.0),
        "zigzag": (lambda: ring(n, m.n_kv_heads, m.head_dim, p), p - 1.0),
        "helper": (lambda: ring(n, m.n_kv_heads, m.head_dim, p) / 2, p - 1.0),
        "all-gather": (lambda: all_gather_kv(n, m.n_kv_heads, m.head_dim, p), 1.0),
        "token-ring": (lambda: token_ring(n, m.n_heads, m.head_dim, p), p - 1.0),
    }
    volume, hops = volumes[kind]
    return volume(), hops
