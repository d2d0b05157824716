"""An op is one kernel, message or copy; a step is a list of ops; this file says what each one costs at least and prices it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .system import System

Floats = float | NDArray[Any]
"""A number, or an array of numbers: one per candidate."""

Lane = Literal["compute", "tp", "cp", "ep", "dp", "pp", "host"]
Phase = Literal["fwd", "bwd", "wgrad", "opt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """``C[m,n] = A[m,k] B[k,n]``: 2mnk FLOPs, each matrix moved once."""

    m: Floats
    n: Floats
    k: Floats
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemm:
    """``tokens`` rows spread evenly over ``n_experts`` matrices of shape [k, n] on this rank."""

    tokens: Floats
    n_experts: Floats
    n: Floats
    k: Floats
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One attention call: ``q_tokens`` queries against ``kv_tokens`` keys of each of ``batch`` sequences.

    Causal: the queries are the last ``q_tokens`` of ``kv_tokens``. Backward is 2.5 times the forward's FLOPs (five products
    for two, one of them recomputed). ``fused = False`` is the kernel chain that writes the score matrix to memory.
    """

    batch: Floats
    q_tokens: Floats
    kv_tokens: Floats
    n_heads: Floats
    n_kv_heads: Floats
    qk_dim: int
    v_dim: int
    causal: bool = True
    window_tokens: int = 0
    backward: bool = False
    fused: bool = True
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Element-wise work: ``n_bytes`` read and written in device memory."""

    n_bytes: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A message of ``n_bytes`` (the full buffer, as nccl-tests count it) among ``n_ranks`` ranks ``stride`` apart.

    An all-to-all of rows that each go to ``fan_out`` ranks on at most ``node_limit`` nodes sends one copy to each node it reaches.
    """

    op: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p"]
    n_bytes: Floats
    n_ranks: Floats
    stride: Floats = 1
    fan_out: int = 1
    node_limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopy:
    """``n_bytes`` of one GPU to or from host memory."""

    n_bytes: Floats


Work = Gemm | GroupedGemm | Attention | Stream | Collective | HostCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """Some work, the lane (resource) it occupies, the phase of the step it belongs to, and how often it happens."""

    name: str
    work: Work
    lane: Lane = "compute"
    phase: Phase = "fwd"
    count: Floats = 1.0


def attended_pairs(a: Attention) -> Floats:
    """Query-key pairs that are really computed, per head and sequence: causal and window masks honoured exactly."""
    q, kv = np.asarray(a.q_tokens, float), np.asarray(a.kv_tokens, float)
    if not a.causal:
        return q * kv
    full = q * kv - q * (q - 1) / 2
    if not a.window_tokens:
        return full
    w = float(a.window_tokens)
    first = np.clip(w - (kv - q), 0, q)  # queries whose whole past still fits in the window
    return first * (kv - q) + first * (first + 1) / 2 + (q - first) * np.minimum(w, kv)


def flops(work: Work) -> Floats:
    """FLOPs executed by one piece of work (0 for copies, messages and element-wise passes)."""
    match work:
        case Gemm(m=m, n=n, k=k):
            return 2.0 * m * n * k
        case GroupedGemm(tokens=t, n=n, k=k):
            return 2.0 * t * n * k
        case Attention():
            once = 2.0 * work.batch * work.n_heads * attended_pairs(work) * (work.qk_dim + work.v_dim)
            return once * (2.5 if work.backward else 1.0)
        case _:
            return 0.0


def price(work: Work, system: System) -> Floats:
    """Seconds of one piece of work on this system: the calibrated roofline or network, never under the physical floor."""
    match work:
        case Gemm(m=m, n=n, k=k, dtype=dtype):
            return system.roofline.gemm_s(m, n, k, dtype) / system.framework.sustained_frac
        case GroupedGemm():
            return system.roofline.grouped_gemm_s(work.tokens, work.n_experts, work.n, work.k, work.dtype) / system.framework.sustained_frac
        case Attention(fused=False):
            return system.roofline.attention_unfused_s(
                batch=work.batch, q_tokens=work.q_tokens, kv_tokens=work.kv_tokens, n_heads=work.n_heads,
                qk_dim=work.qk_dim, v_dim=work.v_dim, dtype=work.dtype, backward=work.backward,
            )  # fmt: skip
        case Attention():
            fused = system.roofline.attention_s(
                batch=work.batch, q_tokens=work.q_tokens, kv_tokens=work.kv_tokens, n_heads=work.n_heads,
                n_kv_heads=work.n_kv_heads, qk_dim=work.qk_dim, v_dim=work.v_dim, causal=work.causal,
                window_tokens=work.window_tokens, dtype=work.dtype, backward=work.backward, kernel=system.framework.attention_kernel,
            )  # fmt: skip
            return fused / system.framework.attention_frac
        case Stream(n_bytes=n_bytes):
            return system.roofline.stream_s(n_bytes)
        case HostCopy(n_bytes=n_bytes):
            return system.roofline.host_copy_s(n_bytes)
        case Collective(op="p2p", n_ranks=n, stride=stride):  # a ring moves at the pace of its hop between nodes, if it has one
            per_node = system.cluster.gpus_per_node
            crosses = np.asarray(n) * stride > per_node  # then each of the ``stride`` rings has one GPU at the node's edge
            return system.network.p2p_s(work.n_bytes, np.where(crosses, per_node, stride), stride)
        case Collective(op="all_to_all"):
            return system.network.all_to_all_s(work.n_bytes, work.n_ranks, work.stride, work.fan_out, work.node_limit)
        case Collective():
            call = getattr(system.network, f"{work.op}_s")
            return call(work.n_bytes, work.n_ranks, work.stride)


STACK_MAX = 2048
"""Longest array that is stacked with others of its kind: beyond it the arithmetic, not the call, is what takes time."""


def price_all(works: Sequence[Work], system: System) -> list[Floats]:
    """``[price(w, system) for w in works]``, with one array call for all short works of a kind, stacked along a new first axis."""
    out: list[Floats] = [0.0] * len(works)
    kinds: dict[tuple[object, ...], list[int]] = {}
    for i, work in enumerate(works):
        kinds.setdefault(_kind(work), []).append(i)
    for alike in kinds.values():
        first = works[alike[0]]
        columns = {name: [np.asarray(getattr(works[i], name), float) for i in alike] for name in SIZES[type(first)]}
        shape = np.broadcast_shapes(*(value.shape for column in columns.values() for value in column))
        if len(alike) == 1 or math.prod(shape) > STACK_MAX:
            for i in alike:
                out[i] = price(works[i], system)
            continue
        stacked: dict[str, Any] = {name: np.stack([np.broadcast_to(v, shape) for v in column]) for name, column in columns.items()}
        for i, seconds in zip(alike, np.asarray(price(replace(first, **stacked), system)), strict=True):
            out[i] = seconds
    return out


SIZES: dict[type, tuple[str, ...]] = {
    cls: tuple(f.name for f in fields(cls) if f.type == "Floats") for cls in (Gemm, GroupedGemm, Attention, Stream, Collective, HostCopy)
}
"""The fields of each kind of work that hold one value per candidate."""


def _kind(work: Work) -> tuple[object, ...]:
    """What works must share to be priced in one call: their type and every field that is not a size."""
    return (type(work), *(getattr(work, f.name) for f in fields(work) if f.type != "Floats"))
