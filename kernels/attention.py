"""Causal flash attention over packed sequences: MHA and GQA, sliding window, attention sinks, queries behind a cached prefix."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .device import has_tma
from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, joined, launch
from .tiles import LOG2_E, load_tile, softmax_step, source, store_rows


@triton.jit
def _over_keys(acc, top, total, q, k, v, start, stop, seq, kv_len, rows, window, sink, scale, n_keys, col, stride,
               EDGE: tl.constexpr, WINDOW: tl.constexpr, SINK: tl.constexpr,
               BLOCK_N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """Fold keys start … stop of one sequence into the running softmax; EDGE tiles hold masked pairs."""
    for at in range(start, stop, BLOCK_N):
        at = tl.multiple_of(at, BLOCK_N)
        k_tile = load_tile(k, seq + at, n_keys, col, stride, BLOCK_N, D, TMA)
        scores = tl.dot(q, k_tile.T) * scale
        if EDGE:
            keys = at + tl.arange(0, BLOCK_N)
            seen = (keys[None, :] <= rows[:, None]) & (keys[None, :] < min(kv_len, stop))
            if WINDOW:
                near = rows[:, None] - keys[None, :] < window
                if SINK:
                    near = near | (keys[None, :] < sink)
                seen = seen & near
            scores = tl.where(seen, scores, -1.0e30)
        weights, top, total, acc = softmax_step(scores, top, total, acc)
        v_tile = load_tile(v, seq + at, n_keys, col, stride, BLOCK_N, D, TMA)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
    return acc, top, total


@triton.jit
def attention_forward(q, k, v, out, lse, q_starts, k_starts, n_queries, n_keys, q_stride, k_stride, window, sink, scale,
                      GROUP: tl.constexpr, WINDOW: tl.constexpr, SINK: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """One tile of queries of one head of one sequence; heads share keys in groups of GROUP."""
    head, batch = tl.program_id(1), tl.program_id(2)
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    seq_q, seq_k = tl.load(q_starts + batch), tl.load(k_starts + batch)
    q_len, kv_len = tl.load(q_starts + batch + 1) - seq_q, tl.load(k_starts + batch + 1) - seq_k
    if first_row >= q_len:
        return
    prefix = kv_len - q_len
    rows = prefix + first_row + tl.arange(0, BLOCK_M)
    col = (head // GROUP) * D
    q_tile = load_tile(q, seq_q + first_row, n_queries, head * D, q_stride, BLOCK_M, D, TMA)
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    top = tl.full((BLOCK_M,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    low = 0
    stop = min(kv_len, prefix + first_row + BLOCK_M)
    seen_by_all = (prefix + first_row + 1) // BLOCK_N * BLOCK_N
    full = 0
    if WINDOW:
        low = max(0, prefix + first_row - window + 1) // BLOCK_N * BLOCK_N
        full = min(tl.cdiv(max(0, prefix + first_row + BLOCK_M - window), BLOCK_N) * BLOCK_N, seen_by_all)
        if SINK:
            acc, top, total = _over_keys(acc, top, total, q_tile, k, v, 0, min(sink, low), seq_k, kv_len, rows, window, sink, scale, n_keys,
                                         col, k_stride, True, True, True, BLOCK_N, D, TMA)  # fmt: skip
        acc, top, total = _over_keys(acc, top, total, q_tile, k, v, low, full, seq_k, kv_len, rows, window, sink, scale, n_keys,
                                     col, k_stride, True, True, SINK, BLOCK_N, D, TMA)  # fmt: skip
    acc, top, total = _over_keys(acc, top, total, q_tile, k, v, full, seen_by_all, seq_k, kv_len, rows, window, sink, scale, n_keys,
                                 col, k_stride, False, WINDOW, SINK, BLOCK_N, D, TMA)  # fmt: skip
    acc, top, total = _over_keys(acc, top, total, q_tile, k, v, seen_by_all, stop, seq_k, kv_len, rows, window, sink, scale, n_keys,
                                 col, k_stride, True, WINDOW, SINK, BLOCK_N, D, TMA)  # fmt: skip
    store_rows(out, acc / total[:, None], seq_q + first_row, seq_q + q_len, head * D, q_stride, BLOCK_M, D)
    within = first_row + tl.arange(0, BLOCK_M)
    tl.store(lse + head * n_queries + seq_q + within, top + tl.log2(total), mask=within < q_len)


def make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    """Packed q [tokens, heads, dim], k and v [tokens, kv heads, dim]; ``ragged`` = 1 gives sequences of unequal length."""
    batch, length, heads, kv_heads, dim = dims(shape, "batch_size", "seq_len", "num_heads", "num_kv_heads", "head_dim")
    prefix = int(shape.get("prefix_len", 0))
    lengths = [max(1, length - (length * i) // (2 * batch)) for i in range(batch)] if shape.get("ragged") else [length] * batch
    q_starts = [sum(lengths[:i]) for i in range(batch + 1)]
    k_starts = [s + i * prefix for i, s in enumerate(q_starts)]
    kind = TORCH_DTYPE[dtype]
    return {
        "q": draw.normal(q_starts[-1], heads, dim, dtype=kind),
        "k": draw.normal(k_starts[-1], kv_heads, dim, dtype=kind),
        "v": draw.normal(k_starts[-1], kv_heads, dim, dtype=kind),
        "out": draw.empty(q_starts[-1], heads, dim, dtype=kind),
        "lse": draw.empty(heads, q_starts[-1], dtype=torch.float32),
        "q_starts": draw.given(q_starts, torch.int32),
        "k_starts": draw.given(k_starts, torch.int32),
        "max_q": max(lengths),
        "max_k": max(lengths) + prefix,
        "window": int(shape.get("window_size", 0)),
        "sink": int(shape.get("sink_tokens", 0)),
    }


def run(inputs: Inputs, config: Config) -> None:
    """Write ``out`` and ``lse`` (base 2)."""
    q, k = inputs["q"], inputs["k"]
    (tokens, heads, dim), group = q.shape, q.shape[1] // k.shape[1]
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    (q_src, q_stride), (k_src, k_stride) = source(q, block_m, dim), source(k, block_n, dim)
    v_src, _ = source(inputs["v"], block_n, dim)
    launch = (cdiv(inputs["max_q"], block_m), heads, inputs["q_starts"].numel() - 1)
    attention_forward[launch](
        q_src, k_src, v_src, inputs["out"], inputs["lse"], inputs["q_starts"], inputs["k_starts"], tokens, k.shape[0], q_stride, k_stride,
        inputs["window"], inputs["sink"], LOG2_E / math.sqrt(dim), GROUP=group, WINDOW=inputs["window"] > 0, SINK=inputs["sink"] > 0,
        D=dim, TMA=has_tma(q), **config,
    )  # fmt: skip


def visible(q_len: int, kv_len: int, window: int, sink: int) -> torch.Tensor:
    """Which keys each of the last ``q_len`` queries sees: the causal ones, within the window or among the sinks. [q_len, kv_len]"""
    rows = torch.arange(q_len)[:, None] + kv_len - q_len
    keys = torch.arange(kv_len)[None, :]
    near = (rows - keys < window) | (keys < sink) if window else torch.ones_like(keys, dtype=torch.bool)
    return (keys <= rows) & near


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention of one sequence in float64: out [q, heads, dim] and base-2 log-sum-exp [heads, q]; mask [(heads,) q, kv]."""
    group = q.shape[1] // k.shape[1]
    keys, values = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) / math.sqrt(q.shape[2])
    scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1) * LOG2_E


def reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    """Sequence by sequence, in float64."""
    q_starts, k_starts = inputs["q_starts"].tolist(), inputs["k_starts"].tolist()
    outs, sums = [], []
    for i in range(len(q_starts) - 1):
        q = inputs["q"][q_starts[i] : q_starts[i + 1]]
        k, v = (inputs[name][k_starts[i] : k_starts[i + 1]] for name in ("k", "v"))
        out, lse = attend(q, k, v, visible(len(q), len(k), inputs["window"], inputs["sink"]))
        outs.append(out)
        sums.append(lse)
    return {"out": torch.cat(outs), "lse": torch.cat(sums, 1)}


def n_pairs(shape: Shape) -> float:
    """Visible (query, key) pairs of one head over the batch; ragged lengths fall evenly from ``seq_len`` to half of it."""
    batch, length = dims(shape, "batch_size", "seq_len")
    prefix, window, sink = (int(shape.get(name, 0)) for name in ("prefix_len", "window_size", "sink_tokens"))
    pairs = 0.0
    for i in range(batch if shape.get("ragged") else 1):
        q = max(1, length - (length * i) // (2 * batch)) if shape.get("ragged") else length
        all_keys = q * prefix + q * (q + 1) / 2
        far = max(0, prefix + q - window - sink) if window else 0
        before = max(0, prefix - window - sink) if window else 0
        pairs += all_keys - (far * (far + 1) - before * (before + 1)) / 2
    return pairs * (1 if shape.get("ragged") else batch)


def n_tokens(shape: Shape) -> float:
    """Query tokens of the batch."""
    batch, length = dims(shape, "batch_size", "seq_len")
    return float(sum(max(1, length - (length * i) // (2 * batch)) for i in range(batch)) if shape.get("ragged") else batch * length)


def flops(shape: Shape, dtype: str) -> float:
    """``4 · pairs · heads · dim``: two matrix products over the visible pairs only."""
    heads, dim = dims(shape, "num_heads", "head_dim")
    return 4.0 * n_pairs(shape) * heads * dim


def moved_bytes(shape: Shape, dtype: str) -> float:
    """q and out once, k and v once (the cached prefix too), the log-sum-exp."""
    heads, kv_heads, dim, batch = dims(shape, "num_heads", "num_kv_heads", "head_dim", "batch_size")
    keys = n_tokens(shape) + batch * int(shape.get("prefix_len", 0))
    return ITEM_BYTES[dtype] * dim * 2 * (n_tokens(shape) * heads + keys * kv_heads) + 4 * heads * n_tokens(shape)


def configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    """Tile shapes by head dimension; the last fits the shared memory of small cards."""
    dim = int(shape["head_dim"])
    if dtype == "float32":
        return (launch(4, 2, BLOCK_M=32, BLOCK_N=32),)
    if dim <= 64:
        return (launch(4, 3, BLOCK_M=128, BLOCK_N=64), launch(4, 2, BLOCK_M=64, BLOCK_N=64))
    if dim <= 128:
        return (launch(8, 3, BLOCK_M=128, BLOCK_N=64), launch(4, 2, BLOCK_M=64, BLOCK_N=32))
    return (launch(8, 2, BLOCK_M=64, BLOCK_N=32), launch(8, 2, BLOCK_M=128, BLOCK_N=64))


HEADS = ({"num_heads": 32, "num_kv_heads": 32}, {"num_heads": 32, "num_kv_heads": 8}, {"num_heads": 8, "num_kv_heads": 1})
_LENGTHS = grid(batch_size=(1, 4, 16), seq_len=(128, 512, 2048, 8192, 32768))
_FULL = tuple(s for s in _LENGTHS if int(s["batch_size"]) * int(s["seq_len"]) <= 131072)
_DIMS = grid(head_dim=(64, 128, 256), window_size=(0, 4096))
_RAGGED = grid(batch_size=(8, 32), seq_len=(512, 4096), ragged=(1,))
_CHUNKS = grid(batch_size=(1, 4), seq_len=(512, 2048, 8192), prefix_len=(2048, 16384, 131072), head_dim=(128,), window_size=(0,))


def _check(batch: int, length: int, heads: int, kv_heads: int, dim: int, **more: int) -> Shape:
    return {"batch_size": batch, "seq_len": length, "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, **more}


def _spec(name: str, family: str, shapes: tuple[Shape, ...], checks: tuple[Shape, ...], aot_shapes: tuple[Shape, ...] = ()) -> KernelSpec:
    return KernelSpec(
        name=name, family=family, dtypes=("bfloat16",), outputs=("out", "lse"), make_inputs=make_inputs, run=run,
        reference=reference, flops=flops, moved_bytes=moved_bytes, shapes=shapes, checks=checks, configs=configs, aot_shapes=aot_shapes,
    )  # fmt: skip


SPECS = (
    _spec("attention", "attention_context", joined(joined(_FULL, HEADS), _DIMS),
          (_check(1, 160, 2, 2, 64), _check(2, 77, 4, 2, 128), _check(1, 130, 2, 1, 256), _check(1, 150, 2, 1, 64, window_size=40)),
          tuple(_check(4, 8192, 32, 8, dim) for dim in (64, 128, 256))),
    _spec("attention_varlen", "attention_context", joined(joined(_RAGGED, HEADS), _DIMS[2:4]),
          (_check(3, 90, 2, 1, 64, ragged=1), _check(2, 101, 4, 2, 128, ragged=1, window_size=33))),
    _spec("chunked_prefill", "attention_context", joined(_CHUNKS, HEADS),
          (_check(1, 70, 2, 1, 64, prefix_len=95), _check(2, 33, 4, 2, 128, prefix_len=64, window_size=50)),
          (_check(1, 8192, 32, 8, 128, prefix_len=131072),)),
    _spec("streaming_attention", "attention_streaming", joined(grid(batch_size=(1,), seq_len=(8192, 32768, 131072), head_dim=(128,),
          window_size=(256, 1024, 4096), sink_tokens=(4, 64)), HEADS),
          (_check(1, 200, 2, 1, 64, window_size=48, sink_tokens=4), _check(2, 97, 2, 2, 128, window_size=17, sink_tokens=20))),
)  # fmt: skip
