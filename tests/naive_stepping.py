"""Speculation and layered prefill written the slow way, one request and one token at a time: the oracle of ``SteppingReplica``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import naive_ranks
from naive_engine import Seq
from roofplan.costmodels.speculation_time import VerifyTimes
from roofplan.sim.policies import Policy
from roofplan.sim.replica_state import Limits


@dataclass
class Guesser:
    """What an engine needs to speculate: γ of a step, whether guess ``i`` of a request's step is right, and what it learns."""

    choose: Callable[[int, int, int, int, int], int]
    right: Callable[[int, int, int], bool]
    learn: Callable[[int, int], None]
    watch: Callable[[int, int, bool], None]


@dataclass
class Turn:
    """A request's own count of decode steps, which outlives preemption, and the times of its tokens."""

    steps: int = 0
    gaps: list[int] = field(default_factory=list)


class NaiveStepping:
    """Rules of ``SteppingReplica`` without a prefix cache, over lists of sequences."""

    def __init__(
        self, seqs: list[Seq], verify: VerifyTimes, policy: Policy, limits: Limits, guesser: Guesser | None, n_layers: int
    ) -> None:
        self.seqs, self.verify, self.policy, self.limits = seqs, verify, policy, limits
        self.guesser, self.n_layers = guesser, n_layers
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []
        self.wave: list[tuple[Seq, int]] = []
        self.group = self.groups = 0
        self.now = self.n_steps = self.n_preempted = 0
        self.open = True
        self.turns = {s.id: Turn() for s in seqs}
        for s in seqs:
            s.known = s.prompt

    def need(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def free(self) -> int:
        return self.limits.blocks - sum(s.blocks for s in self.running)

    def enqueue(self, s: Seq, front: bool = False) -> None:
        self.waiting.insert(0 if front else len(self.waiting), s)
        if self.policy.by_priority:
            self.waiting.sort(key=lambda s: (s.priority, s.id))

    def run(self) -> None:
        todo = sorted(self.seqs, key=lambda s: s.ready)
        while todo or self.waiting or self.running:
            while todo and todo[0].ready <= self.now:
                self.enqueue(todo.pop(0))
            if self.waiting or self.running:
                self.step()
            else:
                self.now = todo[0].ready

    def growth(self, s: Seq, q: int) -> int:
        if self.policy.reserve_output:
            return 0
        last = s.prompt + s.output - 1
        return max(self.need(min(s.computed + q, last)) - s.blocks, 0)

    def prompt_tokens(self) -> int:
        total = sum(s.known - s.computed for s in self.running if not s.decoding and not s.padding)
        for s in self.waiting:
            if total < self.limits.budget:
                total += s.known
        return total

    def step(self) -> None:
        p, width = self.policy, self.verify.width
        decoding = [s for s in self.running if s.decoding and not s.padding]
        pads = sum(s.padding for s in self.running)
        gamma, extra = 0, 0
        if decoding and self.guesser:
            prompts = self.prompt_tokens() if p.mixed and not p.layer_tokens else 0
            waiting = len(self.waiting) + (not p.layer_tokens and any(not s.decoding and not s.padding for s in self.running))
            gamma = self.guesser.choose(len(decoding) + pads, len(decoding), sum(s.computed for s in decoding), prompts, waiting)
        if sum(self.growth(s, 1 + gamma * width) for s in decoding) > self.free():
            gamma = 0
        starved = False
        while sum(self.growth(s, 1 + gamma * width) for s in decoding) > self.free():
            starved = True
            order = self.running if not p.by_priority else sorted(self.running, key=lambda s: (s.priority, s.id))
            started = [s for s, _ in self.wave]
            victim = started[-1] if started else order[-1]
            self.wave = [(s, c) for s, c in self.wave if s is not victim]
            self.running.remove(victim)
            victim.blocks = 0
            victim.swap_ps = 0
            if victim in decoding and self.limits.swap:
                victim.swap_ps = self.need(victim.computed) * self.verify.times.swap
                extra += victim.swap_ps
            else:
                victim.computed = 0
            if victim in decoding:
                decoding.remove(victim)
            victim.decoding = False
            self.n_preempted += 1
            self.enqueue(victim, front=True)
        q = 1 + gamma * width
        grown = {s.id: self.growth(s, q) for s in decoding}
        reserved = sum(grown.values())
        rows = len(decoding) + pads

        chunks: list[tuple[Seq, int]] = []
        prompts = len(self.waiting) + sum(not s.decoding and not s.padding for s in self.running)
        left = p.layer_tokens or naive_ranks.prompt_room(self.verify.times, self.limits.budget, rows * q if p.mixed else 0, prompts)
        if not self.wave:
            for s in self.running:
                if not s.decoding and not s.padding and left > 0:
                    c = min(left, s.known - s.computed)
                    chunks.append((s, c))
                    left -= c
            given = {s.id: c for s, c in chunks}
            stuck = any(not s.decoding and not s.padding and s.known - s.computed > given.get(s.id, 0) for s in self.running)
            while not (starved or stuck) and self.open and self.waiting and left > 0 and len(self.running) < self.limits.max_seqs:
                s = self.waiting[0]
                hold = self.need(s.prompt + s.output - 1 if p.reserve_output else s.known)
                if hold > self.free() - reserved:
                    break
                c = s.known - s.computed
                if c > left and not p.chunked and chunks:
                    break
                self.waiting.pop(0)
                s.blocks = hold
                extra += s.swap_ps
                s.swap_ps = 0
                self.running.append(s)
                c = min(c, left) if p.chunked else c
                chunks.append((s, c))
                left -= c
                if c < s.known - s.computed:
                    break
        if p.layer_tokens:
            if not self.wave:
                self.wave, self.group = chunks, 0
                self.groups = max(1, min(-(-sum(c for _, c in chunks) // p.layer_tokens), self.n_layers))
            chunks = self.wave
            self.group += 1

        before = self.now
        self.now += extra + self.time(chunks, decoding if p.mixed or not chunks else [], pads, gamma)
        if self.guesser:
            self.guesser.watch(self.now, self.now - before, bool(chunks))
        self.n_steps += 1
        if not chunks:
            self.open = p.refill
        if p.mixed or not chunks:
            self.decode(decoding, gamma, grown)
        if p.layer_tokens and self.group < self.groups:
            return
        self.wave = []
        for s, c in chunks:
            s.computed += c
            if s.computed == s.known:
                s.decoding = True
                self.answer(s)

    def time(self, chunks: list[tuple[Seq, int]], decodes: list[Seq], pads: int, gamma: int) -> int:
        t, q = self.verify.times, 1 + gamma * self.verify.width
        rows = len(decodes) + (pads if not chunks else 0)
        kv = sum(s.computed + q for s in decodes)
        layers = alone = self.verify.layers[gamma][rows]
        if chunks:
            cut = [(c, s.computed) for s, c in chunks]
            attention = naive_ranks.prompts_ps(t, self.limits.budget, self.policy.chunked, rows * q, cut, len(self.waiting))
            n = len(decodes)
            attention += t.beside[n] + t.beside_slope[n] * kv + n * t.idle[max(c for c, _ in cut)] if n else 0
            layers = t.linear[rows * q + sum(c for c, _ in cut)] + attention
        if self.policy.layer_tokens and chunks:
            layers = (layers + (self.groups - 1) * alone) // self.groups
        return layers + self.verify.fixed[gamma][rows] + self.verify.per_kv[gamma][len(decodes)] * kv

    def decode(self, decoding: list[Seq], gamma: int, grown: dict[int, int]) -> None:
        accepted = rejected = 0
        for s in list(decoding):
            turn = self.turns[s.id]
            s.blocks += grown[s.id]
            run = 0
            while self.guesser and run < 64 and self.guesser.right(s.id, turn.steps, run):
                run += 1
            rejected += run < gamma
            turn.steps += 1
            for i in range(1 + min(run, gamma)):
                accepted += i > 0
                s.computed += 1
                self.answer(s)
                if s.answered == s.output:
                    break
        if self.guesser and gamma:
            self.guesser.learn(accepted, rejected)
        if not any(s.decoding and not s.padding for s in self.running):
            padding = [s for s in self.running if s.padding]
            for s in padding:
                self.running.remove(s)
            if decoding:
                self.open = True

    def answer(self, s: Seq) -> None:
        """One more token leaves."""
        s.known += 1
        s.answered += 1
        s.times.append(self.now)
        if s.answered == s.output:
            if self.policy.padded and s.output > 1:
                s.padding = True
            else:
                self.running.remove(s)
                s.blocks = 0
