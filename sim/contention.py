"""Replays a step whose stage-to-stage messages and gradient buckets share each rank's network link, one transfer at a time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from ..costmodels.arrays import Array
from ..scenarios.errors import BadInput
from .schedule import BW, FB, NONE, Order, W
from .training import Replay, StageTimes, durations, measure, needs

Wait = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLoad:
    """What goes over a rank's outgoing link: messages of ``p2p_bytes``, and each piece's gradients once its last backward is done."""

    bytes_per_s: float
    latency_s: float
    p2p_bytes: float
    reduce_bytes: float = 0.0
    n_buckets: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContendedReplay:
    """The timeline, the share of the span each link was busy, and the longest time any transfer queued."""

    pipeline: Replay
    link_busy_frac: Array
    longest_queue_s: float


def replay_contended(plan: Order, times: StageTimes, load: LinkLoad) -> ContendedReplay:
    """Play an order with FIFO links: a message takes ``p2p_bytes / bytes_per_s`` of its sender's link, then ``latency_s``.

    A rank's ``reduce_bytes`` (its gradients, already as moved by the collective) are split evenly over its pieces and into
    ``n_buckets`` each. ``times.p2p_s`` and ``times.reduce_s`` are not used. One event a transfer: for up to some 10⁵ ops.
    BadInput if a link figure is negative or zero bandwidth, or if the order waits for itself.
    """
    if min(load.latency_s, load.p2p_bytes, load.reduce_bytes) < 0 or load.bytes_per_s <= 0 or load.n_buckets < 1:
        raise BadInput(f"link figures must not be negative, the bandwidth above 0 and n_buckets at least 1; got {load}")
    return _Step(plan, times, load).run()


class _Step:
    """One run: the clock, the links, and which inputs have arrived where."""

    def __init__(self, plan: Order, times: StageTimes, load: LinkLoad) -> None:
        self.plan, self.load = plan, load
        self.env = simpy.Environment()
        self.links = [simpy.Resource(self.env) for _ in range(plan.pp)]
        self.lasts = durations(plan, times)
        self.f_need, self.b_need = needs(plan, plan.n_cells)
        self.there: dict[tuple[str, int], simpy.Event] = {}
        self.start, self.end = np.full(plan.kind.shape, np.nan), np.full(plan.kind.shape, np.nan)
        self.link_busy, self.done = np.zeros(plan.pp), np.zeros(plan.pp)
        self.longest_queue = 0.0

    def run(self) -> ContendedReplay:
        for rank in range(self.plan.pp):
            self.env.process(self.rank(rank))
        self.env.run()
        if np.isnan(self.end[self.plan.kind != NONE]).any():
            raise BadInput(f"the {self.plan.schedule} order for pp={self.plan.pp}, n_micro={self.plan.n_micro} waits for itself")
        replay = measure(self.plan, self.start, self.end, np.maximum(np.nanmax(self.end, axis=1), self.done))
        return ContendedReplay(
            pipeline=replay, link_busy_frac=self.link_busy / max(replay.span_s, 1e-300), longest_queue_s=self.longest_queue
        )

    def rank(self, rank: int) -> Wait:
        plan, m = self.plan, self.plan.n_micro
        left = {piece: self._weight_passes(rank, piece) for piece in set((plan.b_cell[rank][plan.b_cell[rank] != NONE] // m).tolist())}
        share = self.load.reduce_bytes / len(left) / self.load.n_buckets
        for i in range(int((plan.kind[rank] != NONE).sum())):
            for way, need in (("f", self.f_need[rank, i]), ("b", self.b_need[rank, i])):
                if need != plan.n_cells:
                    yield self.arrived(way, int(need))
            self.start[rank, i] = self.env.now
            yield self.env.timeout(self.lasts[rank, i])
            self.end[rank, i] = self.env.now
            self._send_on(rank, i)
            piece = int(plan.b_cell[rank, i]) // m
            if plan.kind[rank, i] in (W, BW, FB):
                left[piece] -= 1
                if left[piece] == 0 and share > 0:
                    for _ in range(self.load.n_buckets):
                        self.env.process(self.transfer(rank, share, None))

    def _weight_passes(self, rank: int, piece: int) -> int:
        kind, cell = self.plan.kind[rank], self.plan.b_cell[rank]
        return int(((cell // self.plan.n_micro == piece) & (cell != NONE) & np.isin(kind, (W, BW, FB))).sum())

    def _send_on(self, rank: int, i: int) -> None:
        """Hand the op's outputs to the ranks of the next pieces; the first and last piece have none to hand on."""
        plan, pieces = self.plan, self.plan.pieces_per_way
        f_cell, b_cell = int(plan.f_cell[rank, i]), int(plan.b_cell[rank, i])
        onward = []
        if f_cell != NONE and f_cell // plan.n_micro % pieces != pieces - 1:
            onward.append(self.arrived("f", f_cell))
        if b_cell != NONE and plan.kind[rank, i] != W and b_cell // plan.n_micro % pieces != 0:
            onward.append(self.arrived("b", b_cell))
        for there in onward:
            if plan.pp == 1:
                there.succeed()
            else:
                self.env.process(self.transfer(rank, self.load.p2p_bytes, there))

    def arrived(self, way: str, cell: int) -> simpy.Event:
        return self.there.setdefault((way, cell), self.env.event())

    def transfer(self, rank: int, n_bytes: float, then: simpy.Event | None) -> Wait:
        asked = self.env.now
        with self.links[rank].request() as turn:
            yield turn
            self.longest_queue = max(self.longest_queue, self.env.now - asked)
            yield self.env.timeout(n_bytes / self.load.bytes_per_s)
            self.link_busy[rank] += n_bytes / self.load.bytes_per_s
        if then is not None:
            yield self.env.timeout(self.load.latency_s)
            then.succeed()
        else:
            self.done[rank] = max(self.done[rank], self.env.now)
