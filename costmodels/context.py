"""Context parallelism: the attention of one layer and its messages, by kind of split.

Bytes sent per rank and layer, forward (DeepSpeed-Ulysses 2023 §3; Ring Attention 2023 §3; Llama 3 2024 §3.3.2):
ulysses 4 all-to-alls (q, k, v, o; k and v with max(kv heads, ranks) heads), ring (P-1) hops of K and V, all-gather of K and V;
helper: idle ranks of a causal ring help busy ones, half a ring's bytes (LightSeq 2023 §3.2).
"""

from __future__ import annotations

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from .op import Attention, Collective, Floats, Op, Stream
from .shard import Shard

BYTES = 2.0


def half(plan: ParallelPlan) -> str:
    """The format of attention, router and LM head under this plan's precision: 16 bits, or fp32 throughout."""
    return plan.precision if plan.precision in ("fp16", "fp32") else "bf16"


def attention_ops(model: ModelSpec, plan: ParallelPlan, cut: Shard, window_tokens: int) -> tuple[Op, ...]:
    """Forward ops of one layer's attention core on one rank: the calls, and the messages in lane ``cp``.

    Raises nothing: legality (heads, divisibility) is the planner's; sizes that do not divide round up.
    """
    match plan.cp_kind:
        case "none":
            return (_call(model, plan, cut, cut.seq, cut.seq, window_tokens),)
        case "ulysses":
            return _ulysses(model, plan, cut, np.asarray(plan.cp, float), window_tokens)
        case "ulysses-ring":
            return _hybrid(model, plan, cut, window_tokens)
        case "allgather":
            return _all_gather(model, plan, cut, window_tokens)
        case "ring" | "zigzag" | "helper":
            return _ring(model, plan, cut, np.asarray(plan.cp, float), cut.heads, cut.kv_heads, window_tokens, plan.cp_kind != "ring")


def _call(
    model: ModelSpec, plan: ParallelPlan, cut: Shard, q: Floats, kv: Floats, window: int, *, heads: Floats | None = None,
    kv_heads: Floats | None = None, causal: bool = True, count: Floats = 1.0,
) -> Op:  # fmt: skip
    work = Attention(
        batch=cut.batch, q_tokens=q, kv_tokens=kv, n_heads=cut.heads if heads is None else heads,
        n_kv_heads=cut.kv_heads if kv_heads is None else kv_heads, qk_dim=model.qk_dim, v_dim=model.v_dim,
        causal=causal, window_tokens=window if causal else 0, fused=plan.attention == "flash", dtype=half(plan),
    )  # fmt: skip
    return Op(name="attention", work=work, count=count)


def ulysses_heads(cut: Shard, degree: Floats) -> tuple[Floats, Floats]:
    """Query and KV heads per rank after an all-to-all of this degree; both round up (dummy or replicated heads)."""
    return np.ceil(cut.heads / degree), np.ceil(cut.kv_heads / degree)


def _a2a(model: ModelSpec, plan: ParallelPlan, cut: Shard, degree: Floats, stride: Floats) -> tuple[Op, ...]:
    heads, kv_heads = ulysses_heads(cut, degree)
    local = cut.batch * cut.seq / np.asarray(plan.cp, float)
    q_bytes = local * heads * degree * model.qk_dim * BYTES
    o_bytes = local * heads * degree * model.v_dim * BYTES
    kv_bytes = local * kv_heads * degree * (model.qk_dim + model.v_dim) * BYTES
    return tuple(
        Op(name=name, work=Collective(op="all_to_all", n_bytes=n, n_ranks=degree, stride=stride), lane="cp")
        for name, n in (("a2a-q", q_bytes), ("a2a-kv", kv_bytes), ("a2a-o", o_bytes))
    )


def _ulysses(model: ModelSpec, plan: ParallelPlan, cut: Shard, degree: Floats, window: int) -> tuple[Op, ...]:
    heads, kv_heads = ulysses_heads(cut, degree)
    call = _call(model, plan, cut, cut.seq, cut.seq, window, heads=heads, kv_heads=kv_heads)
    return (*_a2a(model, plan, cut, degree, plan.tp), call)


def _ring(
    model: ModelSpec, plan: ParallelPlan, cut: Shard, degree: Floats, heads: Floats, kv_heads: Floats, window: int, balanced: bool,
    stride: Floats | None = None,
) -> tuple[Op, ...]:  # fmt: skip
    """Own block first (causal), then ``degree - 1`` blocks; balanced ranks do half of each block, the naive last rank all of it."""
    n = cut.seq / degree
    hops = np.maximum(degree - 1, 0)
    if window:  # only the hops that reach into the window carry work
        hops = np.minimum(hops, np.ceil(window / n))
    own = _call(model, plan, cut, n, n, window, heads=heads, kv_heads=kv_heads)
    kv_seen = n / 2 if balanced else n
    rest = _call(model, plan, cut, n, kv_seen, 0, heads=heads, kv_heads=kv_heads, causal=False, count=hops)
    kv_bytes = cut.batch * n * kv_heads * (model.qk_dim + model.v_dim) * BYTES
    work = Collective(op="p2p", n_bytes=kv_bytes, n_ranks=degree, stride=plan.tp if stride is None else stride)
    # each block's output joins the fp32 running output: two reads and a write
    merge = Stream(n_bytes=3 * 4.0 * cut.batch * n * heads * model.v_dim)
    messages = hops / 2 if plan.cp_kind == "helper" else hops
    return own, rest, Op(name="ring-merge", work=merge, count=hops), Op(name="ring-kv", work=work, lane="cp", count=messages)


def _hybrid(model: ModelSpec, plan: ParallelPlan, cut: Shard, window: int) -> tuple[Op, ...]:
    """Ulysses inside groups of ``cp_inner`` neighbours, a balanced ring between the groups."""
    inner = np.asarray(plan.cp_inner, float)
    heads, kv_heads = ulysses_heads(cut, inner)
    ring = _ring(
        model, plan, cut, np.asarray(plan.cp, float) / inner, heads, kv_heads, window, balanced=True, stride=np.asarray(plan.tp) * inner
    )
    return (*_a2a(model, plan, cut, inner, plan.tp), *ring)


def _all_gather(model: ModelSpec, plan: ParallelPlan, cut: Shard, window: int) -> tuple[Op, ...]:
    """Every rank gathers all K and V and computes two balanced chunks: on average half the keys."""
    degree = np.asarray(plan.cp, float)
    n = cut.seq / degree
    kv_bytes = cut.batch * cut.seq * cut.kv_heads * (model.qk_dim + model.v_dim) * BYTES
    gather = Collective(op="all_gather", n_bytes=kv_bytes, n_ranks=degree, stride=plan.tp)
    if window:
        call = _call(model, plan, cut, n, np.minimum(cut.seq, n + window), window)
    else:
        call = _call(model, plan, cut, n, cut.seq / 2, 0, causal=False)
    return Op(name="gather-kv", work=gather, lane="cp"), call
