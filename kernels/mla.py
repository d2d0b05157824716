"""Multi-head latent attention: causal prefill with 128 + 64 wide queries, and decode against the compressed paged cache.

Source: DeepSeek-V2, arXiv 2405.04434, section 2.1: keys are a per-head part and a rotary part shared by all heads; in decode the
up-projections are absorbed, so that every head attends to one latent vector per token.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .attention import visible
from .device import has_tma, n_sms
from .draw import Draw
from .paged_attention import PAGE_TOKENS, combine_splits, n_splits, page_table, split_room
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, launch
from .tiles import LOG2_E, load_tile, softmax_step, source, store_rows

NOPE, ROPE, VALUE, LATENT = 128, 64, 128, 512


@triton.jit
def _prefill(q, q_rope, k, k_rope, v, out, q_len, kv_len, n_queries, n_keys, q_stride, qr_stride, k_stride, kr_stride, scale,
             NOPE: tl.constexpr, ROPE: tl.constexpr, TMA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2)
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    row, key, prefix = batch * q_len + first_row, batch * kv_len, kv_len - q_len
    q_tile = load_tile(q, row, n_queries, head * NOPE, q_stride, BLOCK_M, NOPE, TMA)
    qr_tile = load_tile(q_rope, row, n_queries, head * ROPE, qr_stride, BLOCK_M, ROPE, TMA)
    acc = tl.zeros((BLOCK_M, NOPE), dtype=tl.float32)
    top = tl.full((BLOCK_M,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    at_row = prefix + first_row + tl.arange(0, BLOCK_M)
    for at in range(0, min(kv_len, prefix + first_row + BLOCK_M), BLOCK_N):
        k_tile = load_tile(k, key + at, n_keys, head * NOPE, k_stride, BLOCK_N, NOPE, TMA)
        kr_tile = load_tile(k_rope, key + at, n_keys, 0, kr_stride, BLOCK_N, ROPE, TMA)
        scores = tl.dot(q_tile, k_tile.T)
        scores = tl.dot(qr_tile, kr_tile.T, scores) * scale
        at_key = at + tl.arange(0, BLOCK_N)
        scores = tl.where((at_key[None, :] <= at_row[:, None]) & (at_key[None, :] < kv_len), scores, -1.0e30)
        weights, top, total, acc = softmax_step(scores, top, total, acc)
        v_tile = load_tile(v, key + at, n_keys, head * NOPE, k_stride, BLOCK_N, NOPE, TMA)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
    store_rows(out, acc / total[:, None], row, batch * q_len + q_len, head * NOPE, q_stride, BLOCK_M, NOPE)


@triton.jit
def _decode(q, q_rope, cache, rope_cache, pages, kv_lens, part, part_lse, max_pages, scale, n_heads,
            LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
            HEADS: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """HEADS query heads of one sequence against one slice of its latent cache; keys and values are the same latent vectors."""
    batch, split = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    kv_len = tl.load(kv_lens + batch)
    slice_len = tl.cdiv(tl.cdiv(kv_len, SPLITS), BLOCK_N) * BLOCK_N
    low = split * slice_len
    high = min(kv_len, low + slice_len)
    latent, rope, ours = tl.arange(0, LATENT), tl.arange(0, ROPE), head < n_heads
    at_q = batch * n_heads + head[:, None]
    q_tile = tl.load(q + at_q * LATENT + latent[None, :], mask=ours[:, None], other=0.0)
    qr_tile = tl.load(q_rope + at_q * ROPE + rope[None, :], mask=ours[:, None], other=0.0)
    acc = tl.zeros((HEADS, LATENT), dtype=tl.float32)
    top = tl.full((HEADS,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((HEADS,), dtype=tl.float32)
    for at in range(low, high, BLOCK_N):
        token = at + tl.arange(0, BLOCK_N)
        ok = token < high
        page = tl.load(pages + batch * max_pages + token // PAGE, mask=ok, other=0).to(tl.int64)
        where = page * PAGE + token % PAGE
        c_tile = tl.load(cache + where[:, None] * LATENT + latent[None, :], mask=ok[:, None], other=0.0)
        r_tile = tl.load(rope_cache + where[:, None] * ROPE + rope[None, :], mask=ok[:, None], other=0.0)
        scores = tl.dot(q_tile, c_tile.T)
        scores = tl.dot(qr_tile, r_tile.T, scores) * scale
        weights, top, total, acc = softmax_step(tl.where(ok[None, :], scores, -1.0e30), top, total, acc)
        acc = tl.dot(weights.to(c_tile.dtype), c_tile, acc)
    at_part = (batch * n_heads + head) * SPLITS + split
    safe = tl.where(total > 0, total, 1.0)
    tl.store(part + at_part[:, None].to(tl.int64) * LATENT + latent[None, :], acc / safe[:, None], mask=ours[:, None])
    tl.store(part_lse + at_part, tl.where(total > 0, top + tl.log2(safe), -1.0e30), mask=ours)


def _prefill_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    batch, length, heads, prefix = dims(shape, "batch_size", "seq_len", "num_heads", "prefix_len")
    kind, keys = TORCH_DTYPE[dtype], batch * (length + prefix)
    return {
        "q": draw.normal(batch * length, heads, NOPE, dtype=kind),
        "q_rope": draw.normal(batch * length, heads, ROPE, dtype=kind),
        "k": draw.normal(keys, heads, NOPE, dtype=kind),
        "k_rope": draw.normal(keys, ROPE, dtype=kind),
        "v": draw.normal(keys, heads, VALUE, dtype=kind),
        "out": draw.empty(batch * length, heads, VALUE, dtype=kind),
        "batch": batch,
    }


def _prefill_run(inputs: Inputs, config: Config) -> None:
    q, k, batch = inputs["q"], inputs["k"], inputs["batch"]
    (tokens, heads, _), keys, m, n = q.shape, k.shape[0], config["BLOCK_M"], config["BLOCK_N"]
    tiles = (("q", m, NOPE), ("q_rope", m, ROPE), ("k", n, NOPE), ("k_rope", n, ROPE), ("v", n, VALUE))
    found = [source(inputs[name], block, width) for name, block, width in tiles]
    (q_src, qs), (qr_src, qrs), (k_src, ks), (kr_src, krs), (v_src, _) = found
    _prefill[(cdiv(tokens // batch, m), heads, batch)](
        q_src, qr_src, k_src, kr_src, v_src, inputs["out"], tokens // batch, keys // batch, tokens, keys, qs, qrs, ks, krs,
        LOG2_E / math.sqrt(NOPE + ROPE), NOPE=NOPE, ROPE=ROPE, TMA=has_tma(q), **config,
    )  # fmt: skip


def _prefill_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    batch, heads = inputs["batch"], inputs["q"].shape[1]
    q, qr, k, v = (inputs[n].double().unflatten(0, (batch, -1)) for n in ("q", "q_rope", "k", "v"))
    kr = inputs["k_rope"].double().view(batch, -1, 1, ROPE).expand(-1, -1, heads, -1)
    scores = torch.einsum("bqhd,bkhd->bhqk", torch.cat([q, qr], -1), torch.cat([k, kr], -1)) / math.sqrt(NOPE + ROPE)
    scores = scores.masked_fill(~visible(q.shape[1], k.shape[1], 0, 0), -math.inf)
    return {"out": torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(0, 1)}


def _prefill_pairs(shape: Shape) -> float:
    batch, length, prefix = dims(shape, "batch_size", "seq_len", "prefix_len")
    return batch * (float(length) * prefix + length * (length + 1) / 2)


def _prefill_flops(shape: Shape, dtype: str) -> float:
    """``2 · pairs · heads · (128 + 64 + 128)``."""
    return 2.0 * _prefill_pairs(shape) * int(shape["num_heads"]) * (NOPE + ROPE + VALUE)


def _prefill_bytes(shape: Shape, dtype: str) -> float:
    """Queries, outputs, per-head keys and values, and the shared rotary keys, once each."""
    batch, length, heads, prefix = dims(shape, "batch_size", "seq_len", "num_heads", "prefix_len")
    queries, keys = batch * length * heads * (NOPE + ROPE + VALUE), batch * (length + prefix) * (heads * (NOPE + VALUE) + ROPE)
    return float(queries + keys) * ITEM_BYTES[dtype]


def _prefill_configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    if dtype == "float32":
        return (launch(4, 1, BLOCK_M=32, BLOCK_N=32),)
    return (launch(8, 2, BLOCK_M=128, BLOCK_N=64), launch(4, 2, BLOCK_M=64, BLOCK_N=32))


def _decode_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    batch, length, heads = dims(shape, "batch_size", "kv_len", "num_heads")
    kind, latent = TORCH_DTYPE[dtype], int(shape.get("latent_dim", LATENT))
    pages, n_pages = page_table(batch, length, draw)
    room = split_room(batch * cdiv(heads, 16), length)
    return {
        "q": draw.normal(batch, heads, latent, dtype=kind, scale=0.5),
        "q_rope": draw.normal(batch, heads, ROPE, dtype=kind, scale=0.5),
        "cache": draw.normal(n_pages, PAGE_TOKENS, latent, dtype=kind),
        "rope_cache": draw.normal(n_pages, PAGE_TOKENS, ROPE, dtype=kind),
        "out": draw.empty(batch, heads, latent, dtype=kind),
        "pages": pages,
        "kv_lens": draw.given([max(1, length - i) for i in range(batch)], torch.int32),
        "part": draw.empty(batch, heads, room, latent, dtype=torch.float32),
        "part_lse": draw.empty(batch, heads, room, dtype=torch.float32),
        "scratch": ("part", "part_lse"),
    }


def _decode_run(inputs: Inputs, config: Config) -> None:
    q, pages = inputs["q"], inputs["pages"]
    batch, heads, latent = q.shape
    tiles = cdiv(heads, config["HEADS"])
    splits = n_splits(batch * tiles, pages.shape[1] * PAGE_TOKENS, config["BLOCK_N"], n_sms(q))
    _decode[(batch, tiles, splits)](
        q, inputs["q_rope"], inputs["cache"], inputs["rope_cache"], pages, inputs["kv_lens"], inputs["part"], inputs["part_lse"],
        pages.shape[1], LOG2_E / math.sqrt(NOPE + ROPE), heads, LATENT=latent, ROPE=ROPE, PAGE=PAGE_TOKENS, SPLITS=splits, **config,
    )  # fmt: skip
    combine_splits[(batch * heads,)](inputs["part"], inputs["part_lse"], inputs["out"], SPLITS=splits, D=latent, num_warps=4)


def _decode_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    outs = []
    for i, length in enumerate(inputs["kv_lens"].tolist()):
        where = inputs["pages"][i].long()
        c, r = (inputs[n].double()[where].flatten(0, 1)[:length] for n in ("cache", "rope_cache"))
        scores = inputs["q"][i].double() @ c.T + inputs["q_rope"][i].double() @ r.T
        outs.append((scores / math.sqrt(NOPE + ROPE)).softmax(-1) @ c)
    return {"out": torch.stack(outs)}


def _decode_flops(shape: Shape, dtype: str) -> float:
    """``2 · tokens · heads · (512 + 64 + 512)``."""
    batch, length, heads = dims(shape, "batch_size", "kv_len", "num_heads")
    return 2.0 * batch * length * heads * (2 * int(shape.get("latent_dim", LATENT)) + ROPE)


def _decode_bytes(shape: Shape, dtype: str) -> float:
    """The latent cache once (it serves as key and value), queries and outputs once."""
    batch, length, heads = dims(shape, "batch_size", "kv_len", "num_heads")
    latent = int(shape.get("latent_dim", LATENT))
    return float(batch * (length * (latent + ROPE) + heads * (2 * latent + ROPE))) * ITEM_BYTES[dtype]


def _decode_configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    if dtype == "float32":
        return (launch(4, 1, HEADS=16, BLOCK_N=32),)
    return (launch(4, 2, HEADS=16, BLOCK_N=32), launch(8, 1, HEADS=16, BLOCK_N=64))


_PREFILL = tuple(s for s in grid(batch_size=(1, 4, 16), seq_len=(128, 1024, 4096, 16384), prefix_len=(0, 8192), num_heads=(16, 128))
                 if int(s["batch_size"]) * int(s["seq_len"]) <= 16384)  # fmt: skip
_DECODE = tuple(s for s in grid(batch_size=(1, 8, 32, 128), kv_len=(128, 1024, 8192, 65536), num_heads=(16, 128))
                if int(s["batch_size"]) * int(s["kv_len"]) <= 2**21)  # fmt: skip

SPECS = (
    KernelSpec(
        name="mla_prefill",
        family="mla_context",
        dtypes=("bfloat16",),
        outputs=("out",),
        make_inputs=_prefill_inputs,
        run=_prefill_run,
        reference=_prefill_reference,
        flops=_prefill_flops,
        moved_bytes=_prefill_bytes,
        shapes=_PREFILL,
        checks=(
            {"batch_size": 1, "seq_len": 101, "num_heads": 2, "prefix_len": 0},
            {"batch_size": 2, "seq_len": 40, "num_heads": 1, "prefix_len": 55},
        ),
        configs=_prefill_configs,
    ),
    KernelSpec(
        name="mla_decode",
        family="mla_generation",
        dtypes=("bfloat16",),
        outputs=("out",),
        make_inputs=_decode_inputs,
        run=_decode_run,
        reference=_decode_reference,
        flops=_decode_flops,
        moved_bytes=_decode_bytes,
        shapes=_DECODE,
        checks=(
            {"batch_size": 2, "kv_len": 150, "num_heads": 20, "latent_dim": 128},
            {"batch_size": 1, "kv_len": 75, "num_heads": 16},
        ),
        configs=_decode_configs,
    ),
)
