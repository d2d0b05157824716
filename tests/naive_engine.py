"""A serving engine written the slow way, one request and one token at a time: the oracle of the fast one."""

from __future__ import annotations

from dataclasses import dataclass, field

import naive_ranks
import naive_store
from naive_store import NaiveLru, NaiveRadix, NaiveTier
from roofplan.costmodels.step_times import StepTimes
from roofplan.sim.policies import Policy
from roofplan.sim.replica_state import Limits


@dataclass
class Seq:
    """One request as the engine sees it: tokens known so far, tokens with KV, tokens answered."""

    id: int
    prompt: int
    output: int
    ready: int
    priority: int
    known: int = 0  # prompt and answered tokens
    computed: int = 0
    answered: int = 0
    blocks: int = 0
    decoding: bool = False
    padding: bool = False
    swap_ps: int = 0
    held: int = 0  # blocks of the prompt it got from a tier
    times: list[int] = field(default_factory=list)


class NaiveEngine:
    """Plays the same rules as ``Replica`` with lists of sequences and a loop over every token."""

    def __init__(self, seqs: list[Seq], times: StepTimes, policy: Policy, limits: Limits) -> None:
        self.seqs, self.times, self.policy, self.swap = seqs, times, policy, limits.swap
        self.budget, self.max_seqs, self.total, self.block = limits.budget, limits.max_seqs, limits.blocks, limits.block_tokens
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []
        self.now = self.n_steps = self.n_preempted = 0
        self.open = True
        self.hashes: dict[int, list[int]] = {}
        self.each = self.id_tokens = 1
        self.store: NaiveLru | NaiveRadix = NaiveLru()
        self.tiers: list[NaiveTier] = []
        self.landing: dict[int, int] = {}  # block: when it is in HBM
        self.loading: list[tuple[int, int, Seq]] = []
        self.landed: list[Seq] = []
        for s in seqs:
            s.known = s.prompt

    def need(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def used(self) -> int:
        away = [s for _, _, s in self.loading] + self.landed
        return sum(s.blocks for s in self.running + away) + self.store.n_used() * self.each

    def full(self, s: Seq) -> list[int]:
        return self.hashes.get(s.id, [])[: s.prompt // self.id_tokens]

    def shrink(self) -> None:
        for block in self.store.shrink((self.total - self.used()) // self.each):
            naive_store.put(self.tiers, block)

    def leave(self, s: Seq) -> None:
        self.shrink()
        self.running.remove(s)
        s.blocks = 0
        self.store.drop(self.full(s))

    def compute_ps(self, tokens: int, past: int) -> int:
        """Time to compute so many prompt tokens alone, a chunk of the budget at a time."""
        t, total = self.times, 0
        while tokens:
            c = min(tokens, max(self.budget // t.ranks, 1)) if self.policy.chunked else tokens
            total += t.linear[c] + naive_ranks.prompts_ps(t, self.budget, self.policy.chunked, 0, [(c, past)], 0)
            tokens, past = tokens - c, past + c
        return total

    def fetch(self, s: Seq, found: int) -> int:
        """Start loads of the blocks after those found, where that beats computing them; when all are there, 0 if they are."""
        ids = self.full(s)
        ready = max([self.landing.get(h, 0) for h in ids[:found]], default=0)
        at = found
        while at < len(ids) and (at + 1) * self.id_tokens > s.computed:
            tier = naive_store.find(self.tiers, ids[at])
            if tier is None:
                break
            end = at
            while end < len(ids) and naive_store.find(self.tiers, ids[end]) is tier:
                end += 1
            lands = tier.lands(end - at, self.now)
            if lands - self.now >= self.compute_ps((end - at) * self.id_tokens, at * self.id_tokens):
                break
            tier.load(ids[at:end], self.now)
            for h in ids[at:end]:
                self.landing[h] = lands
            ready, at = max(ready, lands), end
        if ready <= self.now:
            return 0
        self.store.hold(ids[:at], 0)
        s.held = at
        return ready

    def enqueue(self, s: Seq, front: bool = False) -> None:
        self.waiting.insert(0 if front else len(self.waiting), s)
        if self.policy.by_priority:
            self.waiting.sort(key=lambda s: (s.priority, s.id))

    def run(self) -> None:
        todo = sorted(self.seqs, key=lambda s: s.ready)
        while todo or self.waiting or self.running or self.loading or self.landed:
            while todo and todo[0].ready <= self.now:
                self.enqueue(todo.pop(0))
            while self.loading and min(self.loading)[0] <= self.now:
                self.landed.append(self.loading.pop(self.loading.index(min(self.loading)))[2])
            idle = not (self.waiting or self.running or self.landed)
            if idle or not self.step():
                self.now = min([s.ready for s in todo[:1]] + [at for at, _, _ in self.loading])

    def step(self) -> bool:
        """One step; False when nothing could run, for want of room that prompts on their way hold."""
        p = self.policy
        decoding = [s for s in self.running if s.decoding and not s.padding]
        extra, starved = 0, False
        growth = {s.id: 0 if p.reserve_output else self.need(s.computed + 1) - self.need(s.computed) for s in decoding}
        while sum(growth[s.id] for s in decoding) > self.total - self.used():
            starved = True
            order = self.running if not p.by_priority else sorted(self.running, key=lambda s: (s.priority, s.id))
            victim = order[-1]
            self.leave(victim)
            if victim in decoding:
                decoding.remove(victim)
                if self.swap:
                    victim.swap_ps = self.need(victim.computed) * self.times.swap
                    extra += victim.swap_ps
                else:
                    victim.computed = 0
            else:
                victim.computed = 0
                victim.swap_ps = 0
            victim.decoding = False
            self.n_preempted += 1
            self.enqueue(victim, front=True)
        reserved = sum(growth[s.id] for s in decoding)

        chunks: list[tuple[Seq, int]] = []
        prompts = len(self.waiting) + len(self.landed) + sum(not s.decoding and not s.padding for s in self.running)
        left = naive_ranks.prompt_room(self.times, self.budget, len(decoding) if p.mixed else 0, prompts)
        for s in self.running:
            if not s.decoding and not s.padding and left > 0:
                c = min(left, s.known - s.computed)
                chunks.append((s, c))
                left -= c
        given = {s.id: c for s, c in chunks}
        stuck = any(not s.decoding and not s.padding and s.known - s.computed > given.get(s.id, 0) for s in self.running)
        if not starved and not stuck and self.open:
            while (self.waiting or self.landed) and left > 0 and len(self.running) < self.max_seqs:
                queue = self.landed or self.waiting
                s = queue[0]
                total = self.need(s.prompt + s.output - 1 if p.reserve_output else s.known)
                found, shared = self.store.find(self.full(s), s.held)
                hold = total - s.held * self.each - shared * self.each - s.blocks
                if hold > self.total - self.used() - reserved:
                    break
                begin = max(s.computed, min(found * self.id_tokens, s.known - 1))
                lands = self.fetch(s, found) if self.tiers and queue is self.waiting else 0
                if lands:
                    self.waiting.pop(0)
                    s.blocks = total - s.held * self.each
                    self.loading.append((lands, s.id, s))
                    self.shrink()
                    continue
                c = s.known - begin
                if c > left and not p.chunked and chunks:
                    break
                if p.chunked:
                    c = min(c, left)
                queue.pop(0)
                self.store.hold(self.full(s), s.held)
                s.held = 0
                s.blocks = total - len(self.full(s)) * self.each
                s.computed = begin
                extra += s.swap_ps
                s.swap_ps = 0
                self.running.append(s)
                self.shrink()
                chunks.append((s, c))
                left -= c
                if c < s.known - s.computed:
                    break

        if not chunks and not any(s.decoding for s in self.running):
            self.now += extra
            self.open = True
            return starved
        decode_now = decoding if p.mixed or not chunks else []
        if decode_now or p.mixed:
            for s in decode_now:
                s.blocks += growth[s.id]
        self.shrink()
        kv_sum = sum(s.computed + 1 for s in decode_now)
        rows = len(decode_now) + (sum(s.padding for s in self.running) if not chunks else 0)
        tokens = rows + sum(c for _, c in chunks)
        t = self.times
        dt = t.linear[tokens] + t.decode[rows] + t.decode_slope[len(decode_now)] * kv_sum + extra
        if chunks:
            cut, waiting = [(c, s.computed) for s, c in chunks], len(self.waiting) + len(self.landed)
            dt += naive_ranks.prompts_ps(t, self.budget, p.chunked, len(decode_now), cut, waiting)
        if chunks and decode_now:
            n = len(decode_now)
            dt += t.beside[n] + t.beside_slope[n] * kv_sum + n * t.idle[max(c for _, c in chunks)]
        self.now += dt
        self.n_steps += 1
        if not chunks:
            self.open = p.refill
        for s in sorted(decode_now, key=lambda s: s.id):
            self.advance(s, 1)
        for s, c in chunks:
            self.advance(s, c)
        if not any(s.decoding and not s.padding for s in self.running) and any(s.padding for s in self.running):
            for s in [s for s in self.running if s.padding]:
                self.leave(s)
        if not any(s.decoding for s in self.running) and decode_now:
            self.open = True
        return True

    def advance(self, s: Seq, tokens: int) -> None:
        s.computed += tokens
        if s.computed < s.known:
            return
        s.known += 1
        s.answered += 1
        s.times.append(self.now)
        s.decoding = True
        if s.answered == s.output:
            if self.policy.padded and s.output > 1:
                s.padding = True
            else:
                self.leave(s)
