"""The ops of one transformer layer on one rank: forward spelled out, backward derived from it by one rewrite."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..scenarios.framework import Framework
from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from .context import attention_ops, half
from .op import Attention, Collective, Floats, Gemm, GroupedGemm, Op, Stream
from .shard import Shard

BYTES = 2.0


def linear_dtype(plan: ParallelPlan) -> str:
    """Arithmetic of the layer's matmuls; attention and the LM head stay in 16 bits."""
    return plan.precision


def layer_ops(model: ModelSpec, plan: ParallelPlan, cut: Shard, fw: Framework, *, moe: bool, window_tokens: int) -> tuple[Op, ...]:
    """Forward ops of one layer: projections, attention, FFN or experts, element-wise passes, messages."""
    ffn = moe_ops(model, plan, cut, fw) if moe else ffn_ops(model, plan, cut, fw, cut.ffn, "ffn")
    return (*projection_ops(model, plan, cut, fw), *attention_ops(model, plan, cut, window_tokens), *ffn, *norm_ops(model, cut, fw))


def projection_ops(model: ModelSpec, plan: ParallelPlan, cut: Shard, fw: Framework) -> tuple[Op, ...]:
    """Query, key, value and output projections, rope, and tensor parallelism's messages around them."""
    dtype, m, h = linear_dtype(plan), cut.tokens, model.hidden
    v_width = cut.heads * model.v_dim
    if model.is_mla:
        down = (model.q_lora_rank or 0) + model.kv_lora_rank + model.rope_head_dim
        up_kv = cut.heads * (model.head_dim + model.v_dim)
        gemms = [
            Op(name="mla-down", work=Gemm(m=cut.sp_tokens, n=down, k=h, dtype=dtype)),
            Op(name="mla-up-q", work=Gemm(m=m, n=cut.q_width, k=model.q_lora_rank or h, dtype=dtype)),
            Op(name="mla-up-kv", work=Gemm(m=m, n=up_kv, k=model.kv_lora_rank, dtype=dtype)),
        ]
    else:
        low = model.q_lora_rank
        width = (low or cut.q_width) + cut.kv_width + cut.kv_heads * model.v_dim
        gemms = [Op(name="qkv", work=Gemm(m=m, n=width, k=h, dtype=dtype))]
        if low:
            gemms.append(Op(name="up-q", work=Gemm(m=m, n=cut.q_width, k=low, dtype=dtype)))
    gemms.append(Op(name="attn-out", work=Gemm(m=m, n=h, k=v_width, dtype=dtype)))
    if model.position == "rope":
        rotated = cut.q_width + cut.kv_width if not model.is_mla else cut.heads * model.rope_head_dim
        gemms.append(Op(name="rope", work=Stream(n_bytes=2 * BYTES * m * rotated * fw.elementwise_passes)))
    return (*gemms, *tp_ops(model, plan, cut, "attn"))


def ffn_ops(model: ModelSpec, plan: ParallelPlan, cut: Shard, fw: Framework, width: Floats, name: str) -> tuple[Op, ...]:
    """Dense FFN of this width per rank, gated or plain, with its activation and messages."""
    dtype, m, h = linear_dtype(plan), cut.tokens, model.hidden
    n_in = 2 if model.gated_mlp else 1
    return (
        Op(name=f"{name}-in", work=Gemm(m=m, n=n_in * width, k=h, dtype=dtype)),
        Op(name=f"{name}-out", work=Gemm(m=m, n=h, k=width, dtype=dtype)),
        Op(name=f"{name}-act", work=Stream(n_bytes=(n_in + 1) * BYTES * m * width * fw.elementwise_passes)),
        *tp_ops(model, plan, cut, name),
    )


def moe_ops(model: ModelSpec, plan: ParallelPlan, cut: Shard, fw: Framework) -> tuple[Op, ...]:
    """Routed experts with balanced load, dispatch and combine over ``ep``, shared experts beside them.

    Each rank sends ``sp_tokens * top_k`` rows of ``hidden`` and, balanced, receives as many.
    """
    dtype, h = linear_dtype(plan), model.hidden
    etp = np.asarray(plan.expert_tp, float)
    rows = cut.sp_tokens * model.top_k
    n_in = 2 if model.gated_mlp else 1
    buffer = rows * h * (1.0 if fw.dispatch_fp8 and dtype.startswith("fp8") else BYTES)
    stride = np.where(etp > 1, np.asarray(plan.tp), 1) * np.ones_like(etp)
    fan_out = model.top_k if fw.two_level_dispatch else 1
    a2a = [
        Op(
            name=name, lane="ep",
            work=Collective(op="all_to_all", n_bytes=n, n_ranks=plan.ep, stride=stride, fan_out=fan_out, node_limit=model.top_k_groups),
        )
        for name, n in (("dispatch", buffer), ("combine", rows * h * BYTES))
    ]  # fmt: skip
    gathered = rows * etp
    expert = [
        Op(name="router", work=Gemm(m=cut.sp_tokens, n=model.n_experts, k=h, dtype=half(plan))),
        Op(name="permute", work=Stream(n_bytes=2 * BYTES * h * (cut.sp_tokens + rows) * 2)),
        Op(name="expert-in", work=GroupedGemm(tokens=gathered, n_experts=cut.experts, n=n_in * cut.expert_ffn, k=h, dtype=dtype)),
        Op(name="expert-out", work=GroupedGemm(tokens=gathered, n_experts=cut.experts, n=h, k=cut.expert_ffn, dtype=dtype)),
        Op(name="expert-act", work=Stream(n_bytes=(n_in + 1) * BYTES * gathered * cut.expert_ffn * fw.elementwise_passes)),
        Op(name="etp-gather", work=Collective(op="all_gather", n_bytes=gathered * h * BYTES, n_ranks=etp), lane="tp"),
        Op(name="etp-scatter", work=Collective(op="reduce_scatter", n_bytes=gathered * h * BYTES, n_ranks=etp), lane="tp"),
    ]
    shared = ffn_ops(model, plan, cut, fw, cut.shared_ffn, "shared") if model.shared_hidden else ()
    return (*a2a, *expert, *shared)


def norm_ops(model: ModelSpec, cut: Shard, fw: Framework) -> tuple[Op, ...]:
    """Two norms (read, write) and two residual adds (two reads, a write) over the hidden width."""
    return (Op(name="norm-residual", work=Stream(n_bytes=2 * (2 + 3) * BYTES * cut.sp_tokens * model.hidden * fw.elementwise_passes)),)


def tp_ops(model: ModelSpec, plan: ParallelPlan, cut: Shard, name: str) -> tuple[Op, ...]:
    """One block's tensor-parallel messages: all-gather in and reduce-scatter out under sequence parallelism, else one all-reduce.

    Source: Korthikanti et al. 2022, §4.2.2: the two forms move the same bytes.
    """
    n_bytes = cut.tokens * model.hidden * BYTES
    sp = (np.asarray(plan.sequence_parallel) > 0).astype(float)
    gather = Collective(op="all_gather", n_bytes=n_bytes, n_ranks=plan.tp)
    scatter = Collective(op="reduce_scatter", n_bytes=n_bytes, n_ranks=plan.tp)
    reduce = Collective(op="all_reduce", n_bytes=n_bytes, n_ranks=plan.tp)
    return (
        Op(name=f"tp-gather-{name}", work=gather, lane="tp", count=sp),
        Op(name=f"tp-scatter-{name}", work=scatter, lane="tp", count=sp),
        Op(name=f"tp-reduce-{name}", work=reduce, lane="tp", count=1 - sp),
    )


def backward(ops: tuple[Op, ...], *, train_weights: bool = True) -> tuple[Op, ...]:
    """Backward ops of these forward ops: data and weight gradients of each matmul, 2.5x attention, doubled streams, dual messages."""
    out: list[Op] = []
    for op in ops:
        out.extend(_gradient(op, train_weights))
    return tuple(out)


def _gradient(op: Op, train_weights: bool) -> list[Op]:
    def again(work: object, phase: str = "bwd", **kw: object) -> Op:
        return dataclasses.replace(op, work=work, phase=phase, **kw)  # type: ignore[arg-type]

    match op.work:
        case Gemm(m=m, n=n, k=k, dtype=dtype):
            data = again(Gemm(m=m, n=k, k=n, dtype=dtype))
            return [data, again(Gemm(m=n, n=k, k=m, dtype=dtype), "wgrad")] if train_weights else [data]
        case GroupedGemm() as g:
            data = again(dataclasses.replace(g, n=g.k, k=g.n))
            return [data, again(g, "wgrad")] if train_weights else [data]
        case Attention() as a:
            return [again(dataclasses.replace(a, backward=True))]
        case Stream(n_bytes=n):
            return [again(Stream(n_bytes=2 * n))]
        case Collective(op="all_gather") as c:
            grads = [again(dataclasses.replace(c, op="reduce_scatter"))]
            # sequence parallelism gathers the input a second time for the weight gradient
            return [*grads, again(c)] if op.name.startswith("tp-gather") and train_weights else grads
        case Collective(op="reduce_scatter") as c:
            return [again(dataclasses.replace(c, op="all_gather"))]
        case Collective(op="p2p") as c:
            return [again(dataclasses.replace(c, n_bytes=2 * c.n_bytes))]
        case _:
            return [again(op.work)]
