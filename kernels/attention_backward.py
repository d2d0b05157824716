"""Backward of causal flash attention over packed sequences: dq by query tiles, dk and dv by key tiles, no atomics."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import attention
from .device import has_tma
from .draw import Draw
from .spec import ITEM_BYTES, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, joined, launch
from .tiles import LOG2_E, load_tile, source, store_rows


@triton.jit
def _row_dots(out, d_out, delta, n_rows, heads, D: tl.constexpr, BLOCK: tl.constexpr):
    """``delta[head, row] = Σ_d out · d_out``."""
    rows, head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    at = (rows[:, None].to(tl.int64) * heads + head) * D + tl.arange(0, D)[None, :]
    inside = (rows < n_rows)[:, None]
    product = tl.load(out + at, mask=inside, other=0.0).to(tl.float32) * tl.load(d_out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(delta + head * n_rows + rows, tl.sum(product, 1), mask=rows < n_rows)


@triton.jit
def _seen(rows, keys, row_ok, kv_len, window, WINDOW: tl.constexpr):
    """Which pairs count: causal, inside the sequence, within the window; ``rows`` and ``keys`` broadcast against each other."""
    seen = (keys <= rows) & (keys < kv_len) & row_ok
    if WINDOW:
        seen = seen & (rows - keys < window)
    return seen


@triton.jit
def _d_keys(q, k, v, d_out, dk, dv, lse, delta, q_starts, k_starts, n_queries, n_keys, q_stride, k_stride, window, scale, sm_scale,
            GROUP: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    kv_head, batch, first_key = tl.program_id(1), tl.program_id(2), tl.program_id(0) * BLOCK_N
    seq_q, seq_k = tl.load(q_starts + batch), tl.load(k_starts + batch)
    q_len, kv_len = tl.load(q_starts + batch + 1) - seq_q, tl.load(k_starts + batch + 1) - seq_k
    if first_key >= kv_len:
        return
    prefix = kv_len - q_len
    keys = first_key + tl.arange(0, BLOCK_N)
    k_tile = load_tile(k, seq_k + first_key, n_keys, kv_head * D, k_stride, BLOCK_N, D, TMA)
    v_tile = load_tile(v, seq_k + first_key, n_keys, kv_head * D, k_stride, BLOCK_N, D, TMA)
    dk_acc = tl.zeros((BLOCK_N, D), dtype=tl.float32)
    dv_acc = tl.zeros((BLOCK_N, D), dtype=tl.float32)
    low = max(0, first_key - prefix) // BLOCK_M * BLOCK_M
    stop = q_len
    if WINDOW:
        stop = min(q_len, first_key + BLOCK_N - 1 + window - prefix)
    for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
        for at in range(low, stop, BLOCK_M):
            within = at + tl.arange(0, BLOCK_M)
            row_ok = within < q_len
            where = head * n_queries + seq_q + within
            q_tile = load_tile(q, seq_q + at, n_queries, head * D, q_stride, BLOCK_M, D, TMA)
            do_tile = load_tile(d_out, seq_q + at, n_queries, head * D, q_stride, BLOCK_M, D, TMA)
            row_lse = tl.load(lse + where, mask=row_ok, other=0.0)
            row_delta = tl.load(delta + where, mask=row_ok, other=0.0)
            seen = _seen((prefix + within)[None, :], keys[:, None], row_ok[None, :], kv_len, window, WINDOW)
            p = tl.where(seen, tl.exp2(tl.dot(k_tile, q_tile.T) * scale - row_lse[None, :]), 0.0)
            dv_acc = tl.dot(p.to(do_tile.dtype), do_tile, dv_acc)
            ds = p * (tl.dot(v_tile, do_tile.T) - row_delta[None, :])
            dk_acc = tl.dot(ds.to(q_tile.dtype), q_tile, dk_acc)
    store_rows(dk, dk_acc * sm_scale, seq_k + first_key, seq_k + kv_len, kv_head * D, k_stride, BLOCK_N, D)
    store_rows(dv, dv_acc, seq_k + first_key, seq_k + kv_len, kv_head * D, k_stride, BLOCK_N, D)


@triton.jit
def _d_queries(q, k, v, d_out, dq, lse, delta, q_starts, k_starts, n_queries, n_keys, q_stride, k_stride, window, scale, sm_scale,
               GROUP: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2)
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    seq_q, seq_k = tl.load(q_starts + batch), tl.load(k_starts + batch)
    q_len, kv_len = tl.load(q_starts + batch + 1) - seq_q, tl.load(k_starts + batch + 1) - seq_k
    if first_row >= q_len:
        return
    prefix = kv_len - q_len
    within = first_row + tl.arange(0, BLOCK_M)
    row_ok = within < q_len
    where = head * n_queries + seq_q + within
    q_tile = load_tile(q, seq_q + first_row, n_queries, head * D, q_stride, BLOCK_M, D, TMA)
    do_tile = load_tile(d_out, seq_q + first_row, n_queries, head * D, q_stride, BLOCK_M, D, TMA)
    row_lse = tl.load(lse + where, mask=row_ok, other=0.0)
    row_delta = tl.load(delta + where, mask=row_ok, other=0.0)
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    low = 0
    if WINDOW:
        low = max(0, prefix + first_row - window + 1) // BLOCK_N * BLOCK_N
    col = (head // GROUP) * D
    for at in range(low, min(kv_len, prefix + first_row + BLOCK_M), BLOCK_N):
        k_tile = load_tile(k, seq_k + at, n_keys, col, k_stride, BLOCK_N, D, TMA)
        v_tile = load_tile(v, seq_k + at, n_keys, col, k_stride, BLOCK_N, D, TMA)
        seen = _seen((prefix + within)[:, None], (at + tl.arange(0, BLOCK_N))[None, :], row_ok[:, None], kv_len, window, WINDOW)
        p = tl.where(seen, tl.exp2(tl.dot(q_tile, k_tile.T) * scale - row_lse[:, None]), 0.0)
        ds = p * (tl.dot(do_tile, v_tile.T) - row_delta[:, None])
        acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc)
    store_rows(dq, acc * sm_scale, seq_q + first_row, seq_q + q_len, head * D, q_stride, BLOCK_M, D)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    inputs = attention.make_inputs(shape, dtype, draw)
    q, k = inputs["q"], inputs["k"]
    if draw.device.type != "meta":
        if draw.device.type == "cpu":
            forward = attention.reference(inputs)
            inputs["out"].copy_(forward["out"])
            inputs["lse"].copy_(forward["lse"])
        else:
            attention.run(inputs, attention.configs(shape, dtype)[-1])
    grads = {name: draw.empty(*like.shape, dtype=q.dtype) for name, like in (("dq", q), ("dk", k), ("dv", k))}
    delta = draw.empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return inputs | grads | {"d_out": draw.normal(*q.shape, dtype=q.dtype), "delta": delta, "scratch": ("delta",)}


def _run(inputs: Inputs, config: Config) -> None:
    q, k, d_out = inputs["q"], inputs["k"], inputs["d_out"]
    (tokens, heads, dim), kv_heads = q.shape, k.shape[1]
    n_seqs, tma, small = inputs["q_starts"].numel() - 1, has_tma(q), config["BLOCK_M"]
    large = config["BLOCK_N"]
    tail = (inputs["window"], LOG2_E / math.sqrt(dim), 1 / math.sqrt(dim))
    shared = {"GROUP": heads // kv_heads, "WINDOW": inputs["window"] > 0, "D": dim, "TMA": tma, "num_warps": config["num_warps"],
              "num_stages": config["num_stages"]}  # fmt: skip
    meta = (inputs["lse"], inputs["delta"], inputs["q_starts"], inputs["k_starts"], tokens, k.shape[0])
    _row_dots[(cdiv(tokens, 32), heads)](inputs["out"], d_out, inputs["delta"], tokens, heads, D=dim, BLOCK=32)
    (q_src, q_stride), (k_src, k_stride), (v_src, _), (o_src, _) = (
        source(t, b, dim) for t, b in ((q, small), (k, large), (inputs["v"], large), (d_out, small))
    )
    _d_keys[(cdiv(inputs["max_k"], large), kv_heads, n_seqs)](
        q_src, k_src, v_src, o_src, inputs["dk"], inputs["dv"], *meta, q_stride, k_stride, *tail, BLOCK_M=small, BLOCK_N=large, **shared
    )
    (q_src, _), (k_src, _), (v_src, _), (o_src, _) = (
        source(t, b, dim) for t, b in ((q, large), (k, small), (inputs["v"], small), (d_out, large))
    )
    _d_queries[(cdiv(inputs["max_q"], large), heads, n_seqs)](
        q_src, k_src, v_src, o_src, inputs["dq"], *meta, q_stride, k_stride, *tail, BLOCK_M=large, BLOCK_N=small, **shared
    )


def _reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    leaves = {name: inputs[name].double().requires_grad_() for name in ("q", "k", "v")}
    out = attention.reference(inputs | leaves)["out"]
    grads = torch.autograd.grad(out, list(leaves.values()), inputs["d_out"].double())
    return dict(zip(("dq", "dk", "dv"), grads, strict=True))


def _flops(shape: Shape, dtype: str) -> float:
    """``10 · pairs · heads · dim``: five matrix products, the scores being rebuilt once."""
    return 2.5 * attention.flops(shape, dtype)


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """q, out, d_out, dq once; k, v, dk, dv once; the log-sum-exp."""
    heads, kv_heads, dim, batch = dims(shape, "num_heads", "num_kv_heads", "head_dim", "batch_size")
    tokens = attention.n_tokens(shape)
    keys = tokens + batch * int(shape.get("prefix_len", 0))
    return ITEM_BYTES[dtype] * dim * 4 * (tokens * heads + keys * kv_heads) + 4 * heads * tokens


def _configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    """BLOCK_N is the tile a program keeps, BLOCK_M the tile it streams."""
    dim = int(shape["head_dim"])
    if dtype == "float32":
        return (launch(4, 1, BLOCK_M=32, BLOCK_N=64),)
    if dim <= 64:
        return (launch(8, 3, BLOCK_M=32, BLOCK_N=128), launch(4, 2, BLOCK_M=32, BLOCK_N=64))
    if dim <= 128:
        return (launch(8, 2, BLOCK_M=32, BLOCK_N=128), launch(4, 2, BLOCK_M=32, BLOCK_N=64))
    return (launch(8, 1, BLOCK_M=32, BLOCK_N=64), launch(4, 1, BLOCK_M=16, BLOCK_N=32))


def _check(batch: int, length: int, heads: int, kv_heads: int, dim: int, **more: int) -> Shape:
    return {"batch_size": batch, "seq_len": length, "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, **more}


_LENGTHS = grid(batch_size=(1, 4), seq_len=(512, 2048, 8192, 32768))

SPECS = (
    KernelSpec(
        name="attention_backward",
        family="attention_backward",
        dtypes=("bfloat16",),
        outputs=("dq", "dk", "dv"),
        make_inputs=_make_inputs,
        run=_run,
        reference=_reference,
        flops=_flops,
        moved_bytes=_moved_bytes,
        shapes=joined(joined(_LENGTHS, attention.HEADS), grid(head_dim=(64, 128, 256), window_size=(0, 4096))),
        checks=(
            _check(1, 100, 2, 2, 64), _check(1, 77, 4, 2, 128), _check(1, 65, 2, 1, 256),
            _check(1, 120, 2, 1, 64, window_size=30), _check(3, 60, 2, 1, 64, ragged=1), _check(1, 40, 2, 1, 64, prefix_len=50),
        ),
        configs=_configs,
        aot_shapes=tuple(_check(4, 8192, 32, 8, dim) for dim in (128, 256)),
        tolerance_factor=2.0,
    ),
)  # fmt: skip
