"""A pipelined replica the slow way: one token at a time, stages as queues, events from a heap. The oracle of ``PipelineReplica``."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from naive_engine import Seq
from naive_ranks import prompt_room, prompts_ps
from roofplan.costmodels.pipeline_times import PipelineTimes
from roofplan.sim.policies import Policy
from roofplan.sim.replica_state import Limits


@dataclass
class Row:
    """One micro-batch's sequences; ``idle_since`` counts up with each time it became idle."""

    seats: int
    idle_since: int
    trip: Trip | None = None
    open: bool = True
    seqs: list[Seq] = field(default_factory=list)


@dataclass
class Trip:
    """A scheduled step of a row on its way through the stages."""

    row: Row
    decodes: list[Seq]
    chunks: list[tuple[Seq, int]]
    took: list[int]
    hop: int


@dataclass
class Stage:
    """Takes trips strictly in the order in which they were scheduled: ``due`` are those to come, ``here`` those that have arrived."""

    due: list[Trip] = field(default_factory=list)
    here: list[Trip] = field(default_factory=list)
    busy: bool = False


class NaivePipeline:
    """Rules of ``PipelineReplica`` without a prefix cache."""

    def __init__(self, seqs: list[Seq], times: PipelineTimes, policy: Policy, limits: Limits) -> None:
        self.seqs, self.times, self.policy, self.limits = seqs, times, policy, limits
        n = len(times.layers)
        shares = [limits.max_seqs if times.in_turn else limits.max_seqs // n + (i < limits.max_seqs % n) for i in range(n)]
        self.rows = [Row(share, i) for i, share in enumerate(shares)]
        self.rows = [row for row in self.rows if row.seats]
        self.stages = [Stage() for _ in range(n)]
        self.waiting: list[Seq] = []
        self.part: Seq | None = None
        self.now = self.host_free = self.n_steps = self.n_preempted = 0
        self.count = itertools.count(len(self.rows))
        self.events: list[tuple[int, int, int, Trip | None, int]] = []
        self.order = itertools.count()
        for s in seqs:
            s.known = s.prompt
            self.push(s.ready, 1, None, s.id)

    def push(self, at: int, kind: int, trip: Trip | None, what: int) -> None:
        heapq.heappush(self.events, (at, kind, next(self.order), trip, what))

    def need(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def free(self) -> int:
        return self.limits.blocks - sum(s.blocks for s in self.seqs)

    def enqueue(self, s: Seq, front: bool = False) -> None:
        self.waiting.insert(0 if front else len(self.waiting), s)
        if self.policy.by_priority:
            self.waiting.sort(key=lambda s: (s.priority, s.id))

    def run(self) -> None:
        while self.events:
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                _, _, _, trip, what = heapq.heappop(self.events)
                if trip is None and what >= 0:
                    self.enqueue(self.seqs[what])
                elif trip is not None:
                    self.move(trip, what)
            while self.host_free <= self.now and self.schedule():
                pass
            if self.now < self.host_free and not any(kind == 2 and at == self.host_free for at, kind, *_ in self.events):
                self.push(self.host_free, 2, None, -1)

    def move(self, trip: Trip, what: int) -> None:
        """Even numbers: the trip arrives at a stage; odd ones: that stage is done with it."""
        i, done = divmod(what, 2)
        stage = self.stages[i]
        if done:
            stage.busy = False
            if i + 1 < len(self.stages):
                self.push(self.now + trip.hop, 0, trip, 2 * (i + 1))
            else:
                self.land(trip)
        else:
            stage.here.append(trip)
        if not stage.busy and stage.due and any(t is stage.due[0] for t in stage.here):
            first = stage.due.pop(0)
            stage.here = [t for t in stage.here if t is not first]
            stage.busy = True
            self.push(self.now + first.took[i], 0, first, 2 * i + 1)

    def schedule(self) -> bool:
        if self.times.in_turn and any(row.trip for row in self.rows):
            return False
        rows = sorted((row for row in self.rows if row.trip is None), key=lambda row: row.idle_since)
        return any(self.start(row) for row in rows)

    def in_flight(self, s: Seq) -> bool:
        return any(s is member for row in self.rows if row.trip for member, _ in row.trip.chunks)

    def start(self, row: Row) -> bool:
        p, limits, extra, starved = self.policy, self.limits, 0, False
        decoding = [s for s in row.seqs if not s.padding]
        pads = len(row.seqs) - len(decoding)

        def growth(s: Seq) -> int:
            return 0 if p.reserve_output else self.need(s.computed + 1) - s.blocks

        while sum(map(growth, decoding)) > self.free():
            starved = True
            started = [self.part] if self.part is not None and not self.in_flight(self.part) else []
            among = [*decoding, *started]
            victim = max(among, key=lambda s: (s.priority, s.id)) if p.by_priority else (started or decoding)[-1]
            victim.swap_ps = 0
            if victim in decoding:
                decoding.remove(victim)
                row.seqs.remove(victim)
                if limits.swap:
                    victim.swap_ps = self.need(victim.computed) * self.times.swap
                    extra += victim.swap_ps
                else:
                    victim.computed = 0
            else:
                self.part, victim.computed = None, 0
            victim.blocks = 0
            self.n_preempted += 1
            self.enqueue(victim, front=True)
        grown = {s.id: growth(s) for s in decoding}
        room = self.free() - sum(grown.values())

        chunks: list[tuple[Seq, int]] = []
        full = len(row.seqs) >= row.seats
        beside = len(decoding) + pads if p.mixed else 0
        left = 0 if full else prompt_room(self.times.work, limits.budget, beside, (self.part is not None) + len(self.waiting))
        if self.part is not None and left > 0:
            s = self.part
            c = min(left, s.known - s.computed - s.held)
            chunks.append((s, c))
            left -= c
            self.part = s if c + s.computed + s.held < s.known else None
        if self.part is None and row.open and not starved:
            ends = len(chunks)
            while self.waiting and left > 0 and ends < row.seats - len(row.seqs):
                s = self.waiting[0]
                hold = self.need(s.prompt + s.output - 1 if p.reserve_output else s.known)
                c = s.known - s.computed
                if hold > room or (c > left and not p.chunked and ends):
                    break
                self.waiting.pop(0)
                s.blocks, room = hold, room - hold
                extra += s.swap_ps
                s.swap_ps = 0
                chunks.append((s, min(c, left) if p.chunked else c))
                left -= chunks[-1][1]
                if chunks[-1][1] < c:
                    self.part = s
                    break
                ends += 1
        if not chunks and not decoding:
            self.host_free = self.now + extra
            row.open = True
            return starved
        now = decoding if p.mixed or not chunks else []
        t, queries = self.times, len(now) + (pads if p.mixed or not chunks else 0)
        tokens = queries + sum(c for _, c in chunks)
        work = t.work.linear[tokens] + t.work.decode[queries]
        work += sum(t.work.decode_slope[len(now)] * (s.computed + 1) for s in now)
        pieces = [(c, s.computed + s.held) for s, c in chunks]
        work += prompts_ps(t.work, limits.budget, p.chunked, queries, pieces, len(self.waiting)) if pieces else 0
        if pieces and now:
            n, w = len(now), t.work
            work += w.beside[n] + w.beside_slope[n] * sum(s.computed + 1 for s in now) + n * w.idle[max(c for c, _ in pieces)]
        for s in now:
            s.blocks += grown[s.id]
        for s, c in chunks:
            s.held += c  # tokens on their way
        took = [work * n // sum(t.layers) for n in t.layers]
        took[-1] = work - sum(took[:-1]) + t.head[queries]
        trip = Trip(row, now, chunks, took, t.hop[tokens])
        row.trip = trip
        if not chunks:
            row.open = p.refill
        for stage in self.stages:
            stage.due.append(trip)
        self.host_free = self.now + t.host[queries] + extra
        self.push(self.host_free, 0, trip, 0)
        self.n_steps += 1
        return True

    def land(self, trip: Trip) -> None:
        row = trip.row
        for s in sorted(trip.decodes, key=lambda s: s.id):
            s.computed += 1
            self.answer(s, row)
        if trip.decodes and all(s.padding for s in row.seqs):
            for s in row.seqs:
                s.blocks = 0
            row.seqs, row.open = [], True
        for s, c in trip.chunks:
            s.computed, s.held = s.computed + c, s.held - c
            if s.computed == s.known:
                row.seqs.append(s)
                self.answer(s, row)
        row.trip, row.idle_since = None, next(self.count)

    def answer(self, s: Seq, row: Row) -> None:
        s.known += 1
        s.answered += 1
        s.times.append(self.now)
        if s.answered == s.output:
            if self.policy.padded and s.output > 1:
                s.padding = True
            else:
                row.seqs.remove(s)
                s.blocks = 0
