"""Loading a tile of a row-major matrix, by tensor descriptor where the card has them and by masked pointers where not."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .device import has_tma

LOG2_E = 1.4426950408889634
MASKED = -1.0e30
"""Score of a masked pair: finite, so that a tile with no visible pair leaves no NaN behind."""


@triton.jit
def load_tile(src, row, n_rows, col, stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """Rows ``row … row+BLOCK`` and columns ``col … col+WIDTH``; rows at or past ``n_rows`` read as zero."""
    if TMA:
        tile = src.load([row, col])
    else:
        rows = row + tl.arange(0, BLOCK)
        ptr = src + rows[:, None].to(tl.int64) * stride + col + tl.arange(0, WIDTH)[None, :]
        tile = tl.load(ptr, mask=(rows < n_rows)[:, None], other=0.0)
    return tile


@triton.jit
def store_rows(dst, tile, row, n_rows, col, stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Write a tile; rows at or past ``n_rows`` are left alone (they belong to the next sequence)."""
    rows = row + tl.arange(0, BLOCK)
    ptr = dst + rows[:, None].to(tl.int64) * stride + col + tl.arange(0, WIDTH)[None, :]
    tl.store(ptr, tile.to(dst.dtype.element_ty), mask=(rows < n_rows)[:, None])


@triton.jit
def softmax_step(scores, top, total, acc):
    """One online-softmax step in base 2: the weights of this tile, the new running maximum, and both accumulators rescaled."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    return weights, new_top, total * shrink + tl.sum(weights, 1), acc * shrink[:, None]


def source(tensor: torch.Tensor, block: int, width: int) -> tuple[Any, int]:
    """What ``load_tile`` reads ``tensor`` [rows, …] through, as a matrix of its flattened last dimensions, and the row stride."""
    flat = tensor.view(tensor.shape[0], -1)
    if has_tma(tensor):
        return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [block, width]), flat.stride(0)
    return flat, flat.stride(0)
