"""Pipeline schedules as data: for each rank, the order in which it runs forwards and backwards of which micro-batch and position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scenarios.errors import BadInput
from ..scenarios.plan import Schedule

F, B, W, BW, FB = range(5)
"""Forward; input gradient alone; weight gradient alone; whole backward; a forward and a whole backward run together."""
KIND_NAMES = ("F", "B", "W", "BW", "FB")
NONE = -1

Cells = NDArray[np.int64]
MAX_OPS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Ops of every rank in order, as arrays of shape (pp, longest list); ``kind`` is NONE past the end of a shorter list.

    A forward (backward) belongs to cell ``f_cell`` (``b_cell``) = ``position * n_micro + micro-batch`` of the model's
    ``n_positions`` consecutive pieces; cells of the second direction (dualpipe) follow those of the first. NONE where an op has none.
    """

    schedule: Schedule
    pp: int
    vpp: int
    n_micro: int
    n_positions: int
    kind: Cells
    f_cell: Cells
    b_cell: Cells

    @property
    def n_cells(self) -> int:
        return self.n_positions * self.n_micro

    @property
    def pieces_per_way(self) -> int:
        """Positions a micro-batch passes from embedding to loss."""
        return self.pp if self.schedule == "dualpipe" else self.n_positions

    @property
    def n_ops(self) -> int:
        return int((self.kind != NONE).sum())


def order(schedule: Schedule, pp: int, vpp: int, n_micro: int) -> Order:
    """The order each rank follows; BadInput if the schedule cannot run these counts.

    gpipe: all forwards, then all backwards. 1f1b: ``pp-1-r`` forwards on rank r, then one forward and one backward in turn.
    interleaved: Megatron's, ``2(pp-1-r) + (vpp-1)pp`` forwards first. zb1p: 1f1b with the weight gradients of rank r run r
    micro-batches late (ZB-H1). dualpipe: two directions through the ranks at once.
    Source: Huang et al. 2019; Narayanan et al. 2021 section 2.2; Qi et al. 2024 section 2; DeepSeek-V3 report section 3.2.1.
    """
    _check(schedule, pp, vpp, n_micro)
    make = {"gpipe": _gpipe, "1f1b": _one_f_one_b, "interleaved": _interleaved, "zb1p": _zb1p, "dualpipe": _dualpipe}[schedule]
    if schedule == "interleaved" and vpp == 1:
        make = _one_f_one_b
    ranks = [make(rank, pp, vpp, n_micro) for rank in range(pp)]
    longest = max(len(kind) for kind, _, _ in ranks)
    table = np.full((3, pp, longest), NONE, dtype=np.int64)
    for rank, columns in enumerate(ranks):
        for row, column in enumerate(columns):
            table[row, rank, : len(column)] = column
    pieces = 2 * pp if schedule == "dualpipe" else pp * vpp
    return Order(schedule=schedule, pp=pp, vpp=vpp, n_micro=n_micro, n_positions=pieces, kind=table[0], f_cell=table[1], b_cell=table[2])


def _check(schedule: Schedule, pp: int, vpp: int, n_micro: int) -> None:
    if min(pp, vpp, n_micro) < 1:
        raise BadInput(f"pp={pp}, vpp={vpp}, n_micro={n_micro}: all must be at least 1")
    if vpp > 1 and schedule != "interleaved":
        raise BadInput(f"vpp={vpp} needs schedule=interleaved, not {schedule}; set vpp=1")
    if schedule == "interleaved" and vpp > 1 and n_micro % pp:
        raise BadInput(f"n_micro={n_micro} is not a multiple of pp={pp}, as the interleaved schedule needs; nearest: {_near(n_micro, pp)}")
    if schedule == "dualpipe" and (pp % 2 or n_micro % 2 or n_micro < 2 * pp):
        raise BadInput(f"dualpipe needs pp even and n_micro even and at least 2*pp; pp={pp}, n_micro={n_micro}")
    if 3 * pp * vpp * n_micro > MAX_OPS:
        raise BadInput(f"pp={pp} * vpp={vpp} * n_micro={n_micro} is over the {MAX_OPS // 3:,} micro-batch passes that a replay holds")


def _near(n: int, step: int) -> str:
    return ", ".join(str(x) for x in (n // step * step, -(-n // step) * step) if x)


Columns = tuple[Cells, Cells, Cells]


def _forward_backward(warmup: int, f_cell: Cells, b_cell: Cells) -> Columns:
    """``warmup`` forwards, then forward and whole backward in turn, then the rest of the backwards."""
    n = len(f_cell)
    slot_f = np.where(np.arange(n) < warmup, np.arange(n), 2 * np.arange(n) - warmup)
    slot_b = np.minimum(2 * np.arange(n) + warmup + 1, np.arange(n) + n)
    table = np.full((3, 2 * n), NONE, dtype=np.int64)
    table[0, slot_f], table[0, slot_b] = F, BW
    table[1, slot_f], table[2, slot_b] = f_cell, b_cell
    return table[0], table[1], table[2]


def _gpipe(rank: int, pp: int, vpp: int, m: int) -> Columns:
    cells = rank * m + np.arange(m)
    return _forward_backward(m, cells, cells)


def _one_f_one_b(rank: int, pp: int, vpp: int, m: int) -> Columns:
    cells = rank * m + np.arange(m)
    return _forward_backward(min(pp - 1 - rank, m), cells, cells)


def _interleaved(rank: int, pp: int, vpp: int, m: int) -> Columns:
    group, inside = np.divmod(np.arange(m * vpp), pp * vpp)
    chunk, micro = inside // pp, group * pp + inside % pp
    f_cell, b_cell = (chunk * pp + rank) * m + micro, ((vpp - 1 - chunk) * pp + rank) * m + micro
    return _forward_backward(min(2 * (pp - 1 - rank) + (vpp - 1) * pp, m * vpp), f_cell, b_cell)


def _zb1p(rank: int, pp: int, vpp: int, m: int) -> Columns:
    """1f1b whose weight gradients lag by ``rank`` micro-batches; during the drain one follows each input gradient."""
    warmup, lag = min(pp - 1 - rank, m), min(rank, m)
    base = rank * m
    ops: list[tuple[int, int, int]] = [(F, base + i, NONE) for i in range(warmup)]
    for i in range(m):
        if warmup + i < m:
            ops.append((F, base + warmup + i, NONE))
        ops.append((B, NONE, base + i))
        if i >= lag:
            ops.append((W, NONE, base + i - lag))
    ops += [(W, NONE, base + i) for i in range(m - lag, m)]
    return _columns(iter(ops))


def _dualpipe(rank: int, pp: int, vpp: int, m: int) -> Columns:
    """Micro-batches 0..m/2-1 enter at rank 0 and the others at rank pp-1; the two directions meet in the middle."""
    half, depth = m // 2, min(rank, pp - 1 - rank)
    near, far = (0, 1) if rank < pp // 2 else (1, 0)
    left = pp // 2 - 1 - depth
    counts = {(F, near): 0, (F, far): 0, (B, near): 0, (B, far): 0}
    late: list[int] = []

    def cell(kind: int, way: int) -> int:
        position = rank if way == 0 else pp - 1 - rank
        i = counts[kind, way]
        counts[kind, way] = i + 1
        return (way * pp + position) * m + way * half + i

    def forward(way: int) -> tuple[int, int, int]:
        return F, cell(F, way), NONE

    def backward(way: int, split: bool) -> tuple[int, int, int]:
        done = cell(B, way)
        if split:
            late.append(done)
        return (B if split else BW), NONE, done

    def weights() -> tuple[int, int, int]:
        return W, NONE, late.pop(0)

    def together(f_way: int, b_way: int) -> tuple[int, int, int]:
        return FB, cell(F, f_way), cell(B, b_way)

    def ops() -> Iterator[tuple[int, int, int]]:
        for _ in range(2 * left):
            yield forward(near)
        for _ in range(depth + 1):
            yield forward(near)
            yield forward(far)
        for _ in range(left):
            yield backward(far, True)
            yield weights()
            yield forward(far)
        for i in range(half - pp + depth + 1):
            if i == 0 and left == 0:  # in the middle the first backward waits for this very forward to come round
                yield forward(near)
                yield backward(far, False)
            else:
                yield together(near, far)
            yield together(far, near)
        for _ in range(left):
            yield backward(far, False)
            yield together(far, near)
        for i in range(2 * (depth + 1)):
            yield backward((far, near)[i % 2], i >= depth + 1)
        for _ in range(left):
            yield weights()
            yield backward(near, True)
        while late:
            yield weights()

    return _columns(ops())


def _columns(ops: Iterator[tuple[int, int, int]]) -> Columns:
    table = np.array(list(ops), dtype=np.int64).T
    return table[0], table[1], table[2]
