"""One serving replica cut into pipeline stages: several micro-batches in flight, each with its own sequences, stage by stage.

Micro-batch ``b`` starts on stage ``s`` at ``max(end[s−1, b] + hop, end[s, b−1])``; stages take micro-batches in the order in which they
were scheduled. A sequence's next step starts only once its last has left the last stage. So stages idle where successive micro-batches
are unequal, or where too few are under way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop

from ..costmodels.pipeline_times import PipelineTimes
from .clock import NEVER
from .counted_batch import CountedBatch
from .gaps import FOLD
from .kvstore import PrefixStore
from .policies import Policy
from .preempt_batch import preempt_from
from .replica_state import Limits
from .requests import Requests
from .stepping import SteppingReplica


@dataclass(slots=True, eq=False)
class Lane:
    """The sequences of one micro-batch between its steps, and what the policies know of them; ``left`` is when it last left, in ps."""

    batch: CountedBatch
    seats: int
    pad: int = 0
    held: int = 0
    open: bool = True
    last_decode: int = 0
    left: int = 0
    fresh: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Flight:
    """A micro-batch on its way: when it leaves, whether it decodes, the prompts it completes and the one it has part of."""

    lane: Lane
    end: int
    decodes: bool
    joins: list[int]
    part: int


class PipelineReplica(SteppingReplica):
    """A ``Replica`` of as many stages, and as many micro-batches, as its tables have.

    One scheduler and one KV pool for all. As soon as it is free it schedules the micro-batch that has been back longest and has work: its
    decodes, and prompts as the policy says, within the token budget. Seats are dealt evenly over the micro-batches. The chunks of a prompt
    may follow one another through the stages; the sequence joins the micro-batch of its last. Without room a micro-batch preempts among
    its own sequences and a prompt that is not on its way. Host time runs before the first stage, one micro-batch at a time; where stages
    work ``in_turn`` it waits for the micro-batch before to leave the last, and each may take every seat.
    With one stage it equals ``SteppingReplica`` to the picosecond.
    """

    def __init__(self, requests: Requests, times: PipelineTimes, policy: Policy, limits: Limits, store: PrefixStore | None = None) -> None:
        super().__init__(requests, times.work, policy, limits, store)
        self.stages, n = times, len(times.layers)
        seats = [limits.max_seqs if times.in_turn else limits.max_seqs // n + (i < limits.max_seqs % n) for i in range(n)]
        self.lanes = [Lane(CountedBatch(limits.block_tokens, reserved=policy.reserve_output), s) for s in seats if s]
        self.idle = deque(self.lanes)
        self.flying: deque[Flight] = deque()
        self.stage_free, self.stage_first, self.stage_busy = [0] * n, [-1] * n, [0] * n
        self.host_free, self.host_busy, self.left, self.tried = 0, 0, 0, False

    def run(self, until: int = NEVER) -> None:
        """Play every event before ``until`` (ps): micro-batches that leave, requests that come, micro-batches that are scheduled."""
        ready, pending, loading, flying, idle = self.r.ready, self.pending, self.loading, self.flying, self.idle
        plain = self.policy.mixed and self.log is None
        if not flying:
            self.tried = False
        next_ready = ready[pending[self.next_pending]] if self.next_pending < len(pending) else NEVER
        while not self.seen:
            at = flying[0].end if flying else NEVER
            news = next_ready if not loading or next_ready < loading[0][0] else loading[0][0]
            if news < at:
                at = news if news > self.now else self.now
            if self.host_free < at and not self.tried and idle and self._has_work():
                at = self.host_free if self.host_free > self.now else self.now
            if at >= until:
                break
            self.now = at
            if flying and flying[0].end == at:
                self._land(flying.popleft())
                continue
            while next_ready <= at:
                self.waiting.append(pending[self.next_pending])
                self.next_pending, self.tried = self.next_pending + 1, False
                next_ready = ready[pending[self.next_pending]] if self.next_pending < len(pending) else NEVER
            while loading and loading[0][0] <= at:
                self.landed.append(heappop(loading)[1])
                self.tried = False
            if not self.tried and self.host_free <= at:
                if plain and self.part < 0 and not self.waiting and not self.landed:
                    before = self.n_steps
                    self._cruise(min(until, next_ready, loading[0][0] if loading else NEVER))
                    if self.n_steps > before:
                        idle = self.idle
                        continue
                self._schedule()
        self.n, self.kv = sum(lane.batch.n for lane in self.lanes), sum(lane.batch.kv for lane in self.lanes)
        self.busy_ps = (self.host_busy + sum(self.stage_busy)) // len(self.stage_busy)

    def stirs(self) -> int:
        """As ``ReplicaState.stirs``: when a micro-batch leaves or can be scheduled; now if neither is to come."""
        at = self.flying[0].end if self.flying else NEVER
        if not self.tried and self._has_work():
            at = min(at, max(self.now, self.host_free))
        return at if at < NEVER else self.now

    def _has_work(self) -> bool:
        """Whether an idle lane may have something to do."""
        return bool(self.idle and (self.part >= 0 or self.waiting or self.landed or any(lane.batch.n for lane in self.idle)))

    def bubble_ps(self) -> int:
        """As ``ReplicaState.bubble_ps``."""
        return sum(free - first - busy for free, first, busy in zip(self.stage_free, self.stage_first, self.stage_busy, strict=True))

    def _schedule(self) -> None:
        """Start the first lane that has work, or note that none has until something else happens."""
        for lane in self.idle:
            self._enter(lane)
            started = self._start(lane)
            self._exit(lane)
            if started:
                return
        self.tried = True

    def _cruise(self, until: int) -> None:
        """Events of decodes alone, up to the first at ``until``, where a sequence ends, or where room is short: ``run`` in short."""
        times, t, free, busy, block = self.stages, self.times, self.stage_free, self.stage_busy, self.block
        linear, decode, slope, head, host, hop = t.linear, t.decode, t.decode_slope, times.head, times.host, times.hop
        layers, total, ready, flying = times.layers, sum(times.layers), deque(x for x in self.idle if x.batch.n), self.flying
        back: dict[Lane, None] = {}  # those that came back, in order of when they last did
        now, host_free, room, reserved, gaps = self.now, self.host_free, self.free, self.policy.reserve_output, self.gaps
        while ready or flying:
            at = flying[0].end if flying else NEVER
            issue = ready and host_free < at
            if issue:
                at = host_free if host_free > now else now
            if at >= until:
                break
            if not issue:
                lane = flying[0].lane
                batch = lane.batch
                if flying[0].joins or batch.step + 1 == batch.next_end:
                    break
                flying.popleft()
                now = at
                if batch.n:
                    batch.step += 1
                    batch.kv += batch.n
                    gaps.ps.append(now - lane.left)
                    gaps.counts.append(batch.n)
                lane.left = now
                back.pop(lane, None)
                back[lane] = None
                if batch.n:
                    ready.append(lane)
                continue
            lane = ready[0]
            batch, n = lane.batch, lane.batch.n
            need = 0 if reserved else batch.grow[(batch.step + 1) % block]
            if need > room:
                break
            now, room, rows = at, room - need, n + lane.pad
            ready.popleft()
            work = linear[rows] + decode[rows] + slope[n] * (batch.kv + n)
            self.host_busy += host[rows]
            host_free = end = now + host[rows]
            left, wait = work, 0
            for i, share in enumerate(layers):
                took = work * share // total
                left -= took
                if i == len(layers) - 1:
                    took += left + head[rows]
                begin = end + wait
                if begin < free[i]:
                    begin = free[i]
                elif self.stage_first[i] < 0:
                    self.stage_first[i] = begin
                free[i] = end = begin + took
                busy[i] += took
                wait = hop[rows]
            host_free = end if times.in_turn else host_free
            self.n_steps += 1
            lane.open = self.policy.refill
            flying.append(Flight(lane, end, True, [], -1))
        away = {flight.lane for flight in flying}
        self.idle = deque(lane for lane in [*(x for x in self.idle if x not in back), *back] if lane not in away)
        if len(gaps.ps) > FOLD:
            gaps.fold()
        self.now, self.host_free, self.free, self.tried = now, host_free, room, False

    def _enter(self, lane: Lane) -> None:
        """The scheduler looks at this lane: what it keeps of a batch is the lane's."""
        self.batch, self.pad, self.held, self.open = lane.batch, lane.pad, lane.held, lane.open
        self.last_decode, self.fresh, self.seats, self.left = lane.last_decode, lane.fresh, lane.seats, lane.left

    def _exit(self, lane: Lane) -> None:
        lane.pad, lane.held, lane.open, lane.last_decode = self.pad, self.held, self.open, self.last_decode

    def _start(self, lane: Lane) -> bool:
        """Schedule a step of this lane; False when it has nothing to do."""
        batch, policy, extra = self.batch, self.policy, 0
        need = 0 if policy.reserve_output else batch.growth(1)
        starved = need > self.free
        if starved:
            extra = self._preempt()
            need = batch.growth(1)
        n = batch.n
        queries, full = n + self.pad, n + self.pad >= self.seats
        chunks, joins, fetched = self._prompts(need, 0 if full else self._left(queries if policy.mixed else 0), starved)
        if not chunks and not n:
            self.host_free = self.now + extra
            self.host_busy += extra
            self.open = True
            return starved
        decodes = policy.mixed or not chunks
        end = self._pass(queries if decodes else 0, n if decodes else 0, chunks, extra + fetched)
        self.n_steps += 1
        if not chunks:
            self.open = policy.refill
        self.free -= need if decodes else 0
        self.idle.remove(lane)
        self.flying.append(Flight(lane, end, decodes, joins, self.part if chunks else -1))
        if self.log is not None:
            asked, began = sum(c for c, _ in chunks), len(joins) + (self.part >= 0)
            since = max(self.now, self.flying[-2].end if len(self.flying) > 1 else 0)
            decoded = queries if decodes else 0
            self.log.add(since, end, 1, decoded + asked, asked, n, began, batch.kv, len(self.waiting), self.free)
        return True

    def _preempt(self) -> int:
        """Preempt for this lane; a prompt whose chunk is on its way stays."""
        part, sent = self.part, any(flight.part == self.part for flight in self.flying)
        if sent:
            self.part = -1
        copied_ps = preempt_from(self)
        if sent:
            self.part = part
        return copied_ps

    def _pass(self, queries: int, n: int, chunks: list[tuple[int, int]], extra: int) -> int:
        """Send a micro-batch through host and stages; returns when it leaves the last."""
        t, times, free, busy = self.times, self.stages, self.stage_free, self.stage_busy
        tokens, work = queries, t.decode[queries] + t.decode_slope[n] * (self.batch.kv + n)
        if chunks:
            tokens += sum(c for c, _ in chunks)
            work += self._mixed_ps(queries, chunks, n, self.batch.kv + n)
        else:
            work += t.linear[queries]
        host, hop = times.host[queries] + extra, times.hop[tokens]
        self.host_busy += host
        self.host_free = end = self.now + host
        for i, took in enumerate(times.stages_ps(work, queries)):
            begin = end + hop if i else end
            if begin < free[i]:
                begin = free[i]
            elif self.stage_first[i] < 0:
                self.stage_first[i] = begin
            free[i] = end = begin + took
            busy[i] += took
        self.host_free = end if times.in_turn else self.host_free
        return end

    def _land(self, flight: Flight) -> None:
        """A micro-batch has left the last stage: its tokens are known, its lane is idle. Nobody hears of an end earlier (a step of 0)."""
        lane = flight.lane
        self._enter(lane)
        if flight.decodes and self.batch.n:
            self._decode(0, 0)
        for q in flight.joins:
            self._join(q, 0)
        self._exit(lane)
        lane.left = self.now
        self.idle.append(lane)
        self.tried = False
        if len(self.gaps.ps) > FOLD:
            self.gaps.fold()

    def last_left(self) -> int:
        """As ``SteppingReplica.last_left``; another lane may have taken the room since."""
        return self.left if self.policy.mixed else self.last_decode

    def _log_gaps(self, n: int, tokens: int, dt: int) -> None:
        """As ``SteppingReplica._log_gaps``."""
        super()._log_gaps(n, tokens, self.now - self.left)

    def _compute_ps(self, tokens: int, past: int) -> int:
        """Time to compute ``tokens`` of a prompt alone: all chunks on the widest stage, the last one on the others too."""
        whole, layers, last = super()._compute_ps(tokens, past), self.stages.layers, min(tokens, self.longest_piece)
        share = max(layers) / sum(layers)
        return round(whole * share + (1 - share) * super()._compute_ps(last, past + tokens - last))
