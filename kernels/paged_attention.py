"""Decode attention over a paged key-value cache: one query a sequence, grouped heads packed into a tile, keys split over programs."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .attention import attend
from .device import n_sms
from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, joined, launch, next_power_of_2
from .tiles import LOG2_E, softmax_step

PAGE_TOKENS = 16


@triton.jit
def _decode_split(q, k_cache, v_cache, pages, kv_lens, part, part_lse, max_pages, window, scale, kv_scale, n_heads, n_kv_heads,
                  GROUP: tl.constexpr, ROWS: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr, D: tl.constexpr,
                  BLOCK_N: tl.constexpr):  # fmt: skip
    """One slice of the keys of one sequence, for the ROWS >= GROUP query heads that share a key head."""
    batch, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_len = tl.load(kv_lens + batch)
    first = tl.maximum(0, kv_len - window)
    slice_len = tl.cdiv(tl.cdiv(kv_len - first, SPLITS), BLOCK_N) * BLOCK_N
    low = first + split * slice_len
    high = min(kv_len, low + slice_len)
    row, dim = tl.arange(0, ROWS), tl.arange(0, D)
    head = kv_head * GROUP + row
    q_tile = tl.load(q + (batch * n_heads + head[:, None]) * D + dim[None, :], mask=(row < GROUP)[:, None], other=0.0)
    acc = tl.zeros((ROWS, D), dtype=tl.float32)
    top = tl.full((ROWS,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for at in range(low, high, BLOCK_N):
        token = at + tl.arange(0, BLOCK_N)
        ok = token < high
        page = tl.load(pages + batch * max_pages + token // PAGE, mask=ok, other=0).to(tl.int64)
        where = ((page * PAGE + token % PAGE) * n_kv_heads + kv_head) * D
        k_tile = tl.load(k_cache + where[:, None] + dim[None, :], mask=ok[:, None], other=0.0).to(q_tile.dtype)
        scores = tl.where(ok[None, :], tl.dot(q_tile, k_tile.T) * scale, -1.0e30)
        weights, top, total, acc = softmax_step(scores, top, total, acc)
        v_tile = tl.load(v_cache + where[:, None] + dim[None, :], mask=ok[:, None], other=0.0).to(q_tile.dtype)
        acc = tl.dot(weights.to(q_tile.dtype), v_tile, acc)
    at_part = (batch * n_heads + head) * SPLITS + split
    safe = tl.where(total > 0, total, 1.0)
    tl.store(part + at_part[:, None] * D + dim[None, :], acc / safe[:, None] * kv_scale, mask=(row < GROUP)[:, None])
    tl.store(part_lse + at_part, tl.where(total > 0, top + tl.log2(safe), -1.0e30), mask=row < GROUP)


@triton.jit
def combine_splits(part, part_lse, out, SPLITS: tl.constexpr, D: tl.constexpr):
    """Merge the slices of one (sequence, head): ``Σ out_s 2^lse_s / Σ 2^lse_s``."""
    row, split, dim = tl.program_id(0).to(tl.int64), tl.arange(0, SPLITS), tl.arange(0, D)
    lse = tl.load(part_lse + row * SPLITS + split)
    weight = tl.exp2(lse - tl.max(lse, 0))
    tiles = tl.load(part + (row * SPLITS + split[:, None]) * D + dim[None, :])
    merged = tl.sum(tiles * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + row * D + dim, merged.to(out.dtype.element_ty))


def n_splits(programs: int, tokens: int, block: int, sms: int) -> int:
    """How many slices give every multiprocessor about two programs, at least one tile each; a power of two, at most 64."""
    wanted = min(cdiv(2 * sms, programs), cdiv(tokens, block), 64)
    return max(1, next_power_of_2(wanted + 1) // 2)


def split_room(programs: int, tokens: int) -> int:
    """Slices to make room for: what ``n_splits`` asks for on the widest card (256 multiprocessors) with the smallest tile."""
    return n_splits(programs, tokens, 16, 256)


def page_table(batch: int, length: int, draw: Draw) -> tuple[torch.Tensor, int]:
    """Pages of ``batch`` sequences in shuffled order [batch, pages a sequence], and how many pages there are in all."""
    per_sequence = cdiv(length, PAGE_TOKENS)
    return draw.permutation(batch * per_sequence).view(batch, per_sequence), batch * per_sequence


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    batch, length, heads, kv_heads, dim = dims(shape, "batch_size", "kv_len", "num_heads", "num_kv_heads", "head_dim")
    kind, cache = TORCH_DTYPE[dtype], TORCH_DTYPE[str(shape.get("kv_cache_dtype", dtype))]
    lengths = [max(1, length - (length * i) // (2 * batch)) for i in range(batch)] if shape.get("ragged") else [length] * batch
    pages, n_pages = page_table(batch, length, draw)
    window = int(shape.get("window_size", 0)) or length
    room = split_room(batch * kv_heads, length)
    return {
        "q": draw.normal(batch, heads, dim, dtype=kind),
        "k_cache": draw.normal(n_pages, PAGE_TOKENS, kv_heads, dim, dtype=cache),
        "v_cache": draw.normal(n_pages, PAGE_TOKENS, kv_heads, dim, dtype=cache),
        "out": draw.empty(batch, heads, dim, dtype=kind),
        "pages": pages,
        "kv_lens": draw.given(lengths, torch.int32),
        "part": draw.empty(batch, heads, room, dim, dtype=torch.float32),
        "part_lse": draw.empty(batch, heads, room, dtype=torch.float32),
        "scratch": ("part", "part_lse"),
        "kv_scale": 0.5 if cache == torch.float8_e4m3fn else 1.0,
        "window": window,
    }


def _run(inputs: Inputs, config: Config) -> None:
    q, k = inputs["q"], inputs["k_cache"]
    (batch, heads, dim), kv_heads, pages = q.shape, k.shape[2], inputs["pages"]
    group = heads // kv_heads
    splits = n_splits(batch * kv_heads, min(inputs["window"], pages.shape[1] * PAGE_TOKENS), config["BLOCK_N"], n_sms(q))
    _decode_split[(batch, kv_heads, splits)](
        q, k, inputs["v_cache"], pages, inputs["kv_lens"], inputs["part"], inputs["part_lse"], pages.shape[1], inputs["window"],
        inputs["kv_scale"] * LOG2_E / math.sqrt(dim), inputs["kv_scale"], heads, kv_heads, GROUP=group,
        ROWS=max(16, next_power_of_2(group)), PAGE=PAGE_TOKENS, SPLITS=splits, D=dim, **config,
    )  # fmt: skip
    combine_splits[(batch * heads,)](inputs["part"], inputs["part_lse"], inputs["out"], SPLITS=splits, D=dim, num_warps=4)


def _reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    outs = []
    for i, length in enumerate(inputs["kv_lens"].tolist()):
        where = inputs["pages"][i].long()
        k, v = (inputs[n].double()[where].flatten(0, 1)[:length] * inputs["kv_scale"] for n in ("k_cache", "v_cache"))
        seen = torch.arange(length)[None, :] >= length - inputs["window"]
        outs.append(attend(inputs["q"][i : i + 1], k, v, seen)[0])
    return {"out": torch.cat(outs)}


def _seen_tokens(shape: Shape) -> float:
    batch, length = dims(shape, "batch_size", "kv_len")
    window = int(shape.get("window_size", 0)) or length
    lengths = [max(1, length - (length * i) // (2 * batch)) for i in range(batch)] if shape.get("ragged") else [length] * batch
    return float(sum(min(n, window) for n in lengths))


def _flops(shape: Shape, dtype: str) -> float:
    """``4 · cached tokens · heads · dim``."""
    heads, dim = dims(shape, "num_heads", "head_dim")
    return 4.0 * _seen_tokens(shape) * heads * dim


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """Every visible key and value once, queries and outputs once."""
    batch, heads, kv_heads, dim = dims(shape, "batch_size", "num_heads", "num_kv_heads", "head_dim")
    cache = ITEM_BYTES[str(shape.get("kv_cache_dtype", dtype))]
    return 2 * _seen_tokens(shape) * kv_heads * dim * cache + 2 * batch * heads * dim * ITEM_BYTES[dtype]


def _configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    if dtype == "float32":
        return (launch(4, 2, BLOCK_N=32),)
    wide = 64 if int(shape["head_dim"]) > 128 else 128
    return (launch(4, 3, BLOCK_N=64), launch(4, 2, BLOCK_N=wide))


def _check(batch: int, length: int, heads: int, kv_heads: int, dim: int, **more: int | str) -> Shape:
    return {"batch_size": batch, "kv_len": length, "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, **more}


_HEADS = ({"num_heads": 32, "num_kv_heads": 8}, {"num_heads": 32, "num_kv_heads": 32}, {"num_heads": 8, "num_kv_heads": 1})
_SIZES = tuple(s for s in grid(batch_size=(1, 4, 16, 64, 256), kv_len=(128, 1024, 8192, 32768, 131072))
               if int(s["batch_size"]) * int(s["kv_len"]) <= 2**20)  # fmt: skip
_KINDS = ({"head_dim": 64, "window_size": 0}, {"head_dim": 128, "window_size": 0}, {"head_dim": 128, "window_size": 4096})

SPECS = (
    KernelSpec(
        name="paged_decode",
        family="attention_generation",
        dtypes=("bfloat16",),
        outputs=("out",),
        make_inputs=_make_inputs,
        run=_run,
        reference=_reference,
        flops=_flops,
        moved_bytes=_moved_bytes,
        shapes=joined(joined(_SIZES, _HEADS), _KINDS),
        checks=(
            _check(2, 250, 4, 2, 64), _check(3, 101, 8, 1, 128, ragged=1), _check(1, 17, 2, 2, 64),
            _check(2, 256, 6, 2, 64, ragged=1, window_size=70), _check(3, 65, 4, 1, 64, ragged=1), _check(1, 1, 4, 1, 64),
        ),
        configs=_configs,
    ),
    KernelSpec(
        name="paged_decode_fp8",
        family="attention_generation",
        dtypes=("bfloat16",),
        outputs=("out",),
        make_inputs=_make_inputs,
        run=_run,
        reference=_reference,
        flops=_flops,
        moved_bytes=_moved_bytes,
        shapes=joined(joined(joined(_SIZES, _HEADS[:1]), _KINDS[1:2]), grid(kv_cache_dtype=("fp8",))),
        checks=(_check(2, 130, 4, 2, 64, kv_cache_dtype="fp8"), _check(3, 77, 8, 1, 128, ragged=1, kv_cache_dtype="fp8")),
        configs=_configs,
        check_dtypes=("float16",),
        min_capability={"bfloat16": 89, "float16": 89},
    ),
)  # fmt: skip
