"""Block-sparse causal prefill: each tile of queries visits a list of key blocks and then a list of single key columns.

Patterns: ``a_shape`` (first block and a local band), ``vertical_slash`` (block diagonals and single columns), ``block_topk`` (the blocks
whose mean key scores highest against the mean query). Source: MInference, arXiv 2407.02490, section 3; MoBA, arXiv 2502.13189, section 2.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl

from .attention import attend, visible
from .device import has_tma
from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, joined, launch
from .tiles import LOG2_E, load_tile, softmax_step, source, store_rows

BLOCK = 64


@triton.jit
def _sparse(q, k, v, k_ptr, v_ptr, out, blocks, counts, columns, n_tokens, n_slots, n_columns, n_heads, q_stride, k_stride, scale,
            GROUP: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    tile, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    col = (head // GROUP) * D
    rows = tile * BLOCK + tl.arange(0, BLOCK)
    lists = head * tl.num_programs(0) + tile
    q_tile = load_tile(q, tile * BLOCK, n_tokens, head * D, q_stride, BLOCK, D, TMA)
    acc = tl.zeros((BLOCK, D), dtype=tl.float32)
    top = tl.full((BLOCK,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for slot in range(tl.load(counts + lists)):
        at = tl.load(blocks + lists.to(tl.int64) * n_slots + slot) * BLOCK
        k_tile = load_tile(k, at, n_tokens, col, k_stride, BLOCK, D, TMA)
        seen = (at + tl.arange(0, BLOCK))[None, :] <= rows[:, None]
        scores = tl.where(seen, tl.dot(q_tile, k_tile.T) * scale, -1.0e30)
        weights, top, total, acc = softmax_step(scores, top, total, acc)
        v_tile = load_tile(v, at, n_tokens, col, k_stride, BLOCK, D, TMA)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
    if COLUMNS:
        dim = tl.arange(0, D)
        for start in range(0, n_columns, BLOCK):
            place = start + tl.arange(0, BLOCK)
            key = tl.load(columns + lists.to(tl.int64) * n_columns + place, mask=place < n_columns, other=-1)
            where = key[:, None].to(tl.int64) * k_stride + col + dim[None, :]
            k_rows = tl.load(k_ptr + where, mask=(key >= 0)[:, None], other=0.0)
            scores = tl.where((key >= 0)[None, :], tl.dot(q_tile, k_rows.T) * scale, -1.0e30)
            weights, top, total, acc = softmax_step(scores, top, total, acc)
            v_rows = tl.load(v_ptr + where, mask=(key >= 0)[:, None], other=0.0)
            acc = tl.dot(weights.to(v_rows.dtype), v_rows, acc)
    store_rows(out, acc / total[:, None], tile * BLOCK, n_tokens, head * D, q_stride, BLOCK, D)


def _kept(shape: Shape) -> tuple[int, int, int]:
    """Tiles of the sequence, key blocks a tile keeps at most, and single columns."""
    length, kept = dims(shape, "seq_len", "kept_tokens")
    tiles = cdiv(length, BLOCK)
    return tiles, min(tiles, max(1, kept // BLOCK)), int(shape.get("vertical_columns", 0))


def block_lists(shape: Shape, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Key blocks each (head, tile) visits, own block included [heads, tiles, slots], -1 in unused slots, and how many are used."""
    tiles, slots, _ = _kept(shape)
    tile = torch.arange(tiles, device=q.device)
    if shape["pattern"] == "block_topk":
        padded = [torch.nn.functional.pad(t.float(), (0, 0, 0, 0, 0, tiles * BLOCK - len(t))) for t in (q, k)]
        mean_q, mean_k = (t.unflatten(0, (tiles, BLOCK)).mean(1) for t in padded)
        scores = torch.einsum("qhd,khd->hqk", mean_q, mean_k.repeat_interleave(q.shape[1] // k.shape[1], 1))
        scores = scores.masked_fill(tile[None, :] == tile[:, None], math.inf).masked_fill(tile[None, :] > tile[:, None], -math.inf)
        best = scores.topk(slots)
        lists = torch.where(best.values == -math.inf, -1, best.indices)
    else:
        offsets = torch.arange(slots, device=q.device)
        if shape["pattern"] == "vertical_slash":
            offsets = offsets * tiles // slots
        lists = tile[:, None] - offsets[None, :]
        if shape["pattern"] == "a_shape" and slots > 1:
            lists[:, -1] = torch.where(lists[:, -1] > 0, 0, lists[:, -1])
        lists = lists.clamp_min(-1).expand(q.shape[1], -1, -1)
    return lists.to(torch.int32).contiguous(), (lists >= 0).sum(-1).to(torch.int32)


def column_lists(shape: Shape, lists: torch.Tensor) -> torch.Tensor:
    """Evenly spread columns each tile adds [tiles, columns]; -1 where the tile's first-head blocks hold it or it is not yet past.

    A tile's own block is always in its lists, so every column that remains is visible to all of its rows.
    """
    tiles, _, n_columns = _kept(shape)
    tile = torch.arange(tiles, device=lists.device)
    columns = torch.arange(n_columns, device=lists.device) * int(shape["seq_len"]) // max(1, n_columns)
    held = torch.zeros(tiles, tiles + 1, dtype=torch.bool, device=lists.device)
    held.scatter_(1, torch.where(lists[0] < 0, tiles, lists[0]).long(), True)
    hidden = held[:, columns // BLOCK] | (columns[None, :] >= tile[:, None] * BLOCK)
    return torch.where(hidden, -1, columns[None, :]).to(torch.int32)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    length, heads, kv_heads, dim = dims(shape, "seq_len", "num_heads", "num_kv_heads", "head_dim")
    kind = TORCH_DTYPE[dtype]
    q, k = draw.normal(length, heads, dim, dtype=kind), draw.normal(length, kv_heads, dim, dtype=kind)
    lists, counts = block_lists(shape, q, k)
    return {
        "q": q, "k": k, "v": draw.normal(length, kv_heads, dim, dtype=kind), "out": draw.empty(length, heads, dim, dtype=kind),
        "blocks": lists, "counts": counts, "columns": column_lists(shape, lists).expand(heads, -1, -1).contiguous(),
    }  # fmt: skip


def _run(inputs: Inputs, config: Config) -> None:
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    (tokens, heads, dim), lists, columns = q.shape, inputs["blocks"], inputs["columns"]
    (q_src, q_stride), (k_src, k_stride), (v_src, _) = (source(t, BLOCK, dim) for t in (q, k, v))
    _sparse[(cdiv(tokens, BLOCK), heads)](
        q_src, k_src, v_src, k, v, inputs["out"], lists, inputs["counts"], columns, tokens, lists.shape[2], columns.shape[2], heads,
        q_stride, k_stride, LOG2_E / math.sqrt(dim), GROUP=heads // k.shape[1], COLUMNS=columns.shape[2] > 0, D=dim, TMA=has_tma(q),
        BLOCK=BLOCK, **config,
    )  # fmt: skip


def _reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    n, (heads, tiles) = len(inputs["q"]), inputs["blocks"].shape[:2]
    mask = torch.zeros(heads, tiles * BLOCK, tiles * BLOCK, dtype=torch.bool)
    for head in range(heads):
        for tile in range(tiles):
            band = mask[head, tile * BLOCK : (tile + 1) * BLOCK]
            for block in inputs["blocks"][head, tile, : int(inputs["counts"][head, tile])].tolist():
                band[:, block * BLOCK : (block + 1) * BLOCK] = True
            band[:, [c for c in inputs["columns"][head, tile].tolist() if c >= 0]] = True
    return {"out": attend(inputs["q"], inputs["k"], inputs["v"], mask[:, :n, :n] & visible(n, n, 0, 0))[0]}


@lru_cache(maxsize=4096)
def n_pairs(pattern: str, length: int, kept: int, n_columns: int) -> float:
    """Visible (query, key) pairs of one head: kept blocks, the own block by halves, and the single columns of ``vertical_slash``."""
    shape: Shape = {"pattern": pattern, "seq_len": length, "kept_tokens": kept, "vertical_columns": n_columns}
    tiles, slots, _ = _kept(shape)
    tile = torch.arange(tiles)
    rows = (length - tile * BLOCK).clamp_max(BLOCK).double()
    if pattern == "vertical_slash":
        lists, counts = block_lists(shape, torch.empty(0, 1, 1), torch.empty(0, 1, 1))
        others = (counts[0] - 1) * BLOCK + (column_lists(shape, lists) >= 0).sum(1)
    else:
        others = tile.clamp_max(slots - 1) * BLOCK
    return float((rows * others + rows * (rows + 1) / 2).sum())


def _flops(shape: Shape, dtype: str) -> float:
    """``4 · heads · dim · pairs`` over the visible pairs only."""
    length, kept, heads, dim = dims(shape, "seq_len", "kept_tokens", "num_heads", "head_dim")
    return 4.0 * heads * dim * n_pairs(str(shape["pattern"]), length, kept, int(shape.get("vertical_columns", 0)))


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """q and out once; k and v once."""
    length, heads, kv_heads, dim = dims(shape, "seq_len", "num_heads", "num_kv_heads", "head_dim")
    return 2.0 * length * (heads + kv_heads) * dim * ITEM_BYTES[dtype]


def _configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    if dtype == "float32":
        return (launch(4, 1),)
    return (launch(4, 3), launch(4, 2))


def _check(pattern: str, length: int, kept: int, dim: int = 64, columns: int = 0) -> Shape:
    sizes: Shape = {"seq_len": length, "kept_tokens": kept, "num_heads": 2, "num_kv_heads": 1, "head_dim": dim}
    return {"pattern": pattern, "vertical_columns": columns, **sizes}


_HEADS = ({"num_heads": 32, "num_kv_heads": 8, "head_dim": 128},)
_SIZES = grid(seq_len=(8192, 32768, 131072), kept_tokens=(1024, 2048, 4096))

SPECS = (
    KernelSpec(
        name="sparse_attention",
        family="attention_sparse",
        dtypes=("bfloat16",),
        outputs=("out",),
        make_inputs=_make_inputs,
        run=_run,
        reference=_reference,
        flops=_flops,
        moved_bytes=_moved_bytes,
        shapes=joined(grid(pattern=("a_shape", "block_topk"), vertical_columns=(0,)), joined(_SIZES, _HEADS))
        + joined(grid(pattern=("vertical_slash",), vertical_columns=(512, 1024)), joined(_SIZES, _HEADS)),
        checks=(
            _check("a_shape", 250, 128), _check("vertical_slash", 256, 128, columns=40), _check("block_topk", 230, 128, dim=128),
            _check("vertical_slash", 201, 64, columns=70), _check("block_topk", 77, 64),
        ),
        configs=_configs,
    ),
)  # fmt: skip
