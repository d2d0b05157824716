"""One serving replica that plays every step: for speculation, layered prefill and step times without a closed form.

Running sequences are columns of arrays, so a step costs a dozen array operations whatever its batch; rules, units and results are those
of ``Replica``, which it equals bit for bit where both apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..costmodels.speculation_time import VerifyTimes
from ..costmodels.step_times import StepTimes
from ..scenarios.errors import BadInput
from ..scenarios.serving_parts import Speculation
from .engine import NEVER, Limits, Replica
from .gaps import FOLD
from .kvstore import PrefixCache
from .policies import Policy
from .requests import Requests
from .speculate import Acceptance, Controller

ROWS = 64
"""Steps for which the draws of a sequence are prepared at once."""


class StepPrice(Protocol):
    """Step times of any shape: whole picoseconds of a step, and of one KV block over the host link."""

    swap: int

    def step_ps(self, n_decodes: int, kv_sum: int, chunks: list[tuple[int, int]]) -> int:
        """``n_decodes`` sequences that read ``kv_sum`` cached tokens, and prompt chunks as (tokens, past)."""

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest step it can price."""


class SteppingReplica(Replica):
    """A ``Replica`` that also speculates (``speculation`` prices and draws it), prefills by layers, and takes any ``StepPrice``.

    A step of γ guesses takes KV room for all tokens it checks, up to the answer's end; when room is short it does not guess. A request's
    tokens of one step leave together. Under a ``layered`` policy the waiting prompts that fit ``layer_tokens`` (at least one) go through
    ``G = ceil(tokens / layer_tokens)`` groups of layers, at most ``n_layers``, one group a step, and each step costs ``1/G`` of what it
    would with the whole prompts and ``1 − 1/G`` of what the decodes' layers cost alone. Raises BadInput for speculation over tables that
    are not ``StepTimes``.
    """

    def __init__(
        self,
        requests: Requests,
        times: StepTimes | StepPrice,
        policy: Policy,
        limits: Limits,
        store: PrefixCache | None = None,
        *,
        speculation: tuple[Controller, Acceptance] | None = None,
        n_layers: int = 1,
    ) -> None:
        affine = isinstance(times, StepTimes)
        if not affine and (speculation or policy.layer_tokens):
            raise BadInput(f"speculation and policy={policy.name} need affine step tables; drop them or the attention-FFN split")
        super().__init__(requests, times if isinstance(times, StepTimes) else _EMPTY, policy, limits, store)
        self.controller: Controller | None = speculation[0] if speculation else None
        self.acceptance: Acceptance | None = speculation[1] if speculation else None
        self.price = None if isinstance(times, StepTimes) else times
        self.swap_ps = times.swap
        verify = self.controller.verify if self.controller else None
        self.fixed = verify.fixed if verify else [self.times.decode]
        self.per_kv = verify.per_kv if verify else [self.times.decode_slope]
        self.width = verify.width if verify else 1
        self.n_layers = n_layers
        seats = self.max_seqs
        self.slot: dict[int, int] = {}
        self.who = np.zeros(seats, np.int64)
        self.length = np.zeros(seats, np.int64)  # tokens with KV
        self.last = np.zeros(seats, np.int64)  # length at which the answer is complete
        self.has = np.zeros(seats, np.int64)  # blocks
        self.began = np.zeros(seats, np.int64)  # decode step at which the sequence's own count of steps was 0
        self.runs = np.zeros((ROWS, seats), np.int64)
        self.target = np.zeros(0, np.int64)
        self.n_held = 0
        self.decoded: dict[int, int] = {}
        self.wave: list[tuple[int, int, int]] = []  # layered prefill under way: (request, tokens, past)
        self.groups = self.group = 0

    def submit(self, request: int) -> bool:
        """As ``Replica.submit``; a step must also price the prompt beside a full batch."""
        r = self.r
        largest = len(self.times.linear) - 1 if self.price is None else self.price.max_tokens
        beside = self.budget if self.controller else self.max_seqs - 1
        too_long = not self.policy.chunked and r.prompt[request] + beside > largest
        if too_long or self._blocks(r.prompt[request] + r.output[request] - 1) > self.blocks:
            r.rejected.append(request)
            return False
        self.pending.append(request)
        self.n_outstanding += 1
        return True

    def run(self, until: int = NEVER) -> None:
        """Play every step that starts before ``until`` (ps); requests ready by then must have been submitted."""
        ready, pending, waiting = self.r.ready, self.pending, self.waiting
        while self.now < until:
            p = self.next_pending
            while p < len(pending) and ready[pending[p]] <= self.now:
                waiting.append(pending[p])
                p += 1
            self.next_pending = p
            if self.n or self.part >= 0 or self.wave or waiting:
                self._step()
            elif p < len(pending) and ready[pending[p]] < until:
                self.now = ready[pending[p]]
            else:
                break

    def _step(self) -> None:
        policy, n = self.policy, self.n
        gamma = self._guesses()
        self.penalty, need = 0, self._growth(1 + gamma * self.width)
        if gamma and need > self.free:
            gamma, need = 0, self._growth(1)
        starved = need > self.free
        if starved:
            self._evict()
            n, need = self.n, self._growth(1)
        rows = n + self.pad
        queries = rows * (1 + gamma * self.width)
        left = self.budget - (queries if policy.mixed else 0)
        if policy.layer_tokens:
            chunks, joins, extra = self._layer_group(need, starved)
        else:
            chunks, joins, extra = self._prompts(need, left, starved)
        decodes = policy.mixed or not chunks
        dt = self._time(rows, queries, gamma, chunks, decodes) + extra + self.penalty
        self.now += dt
        self.busy_ps += dt
        self.n_steps += 1
        if not chunks:
            self.open = policy.refill
        if decodes:
            self.free -= need
            self.k += 1
        if self.log is not None:
            asked = sum(c for c, _ in chunks)
            began = len(joins) + (self.part >= 0) + len(self.wave)
            passed = queries if decodes else 0
            self.log.add(self.now - dt, self.now, 1, passed + asked, asked, n, began, self.kv, len(self.waiting), self.free)
        if decodes and n:
            self._decode(gamma, dt)
        for q in joins:
            self._join(q)
        if len(self.gaps.ps) > FOLD:
            self.gaps.fold()

    def _guesses(self) -> int:
        if not self.n or self.controller is None:
            return 0
        prompts = self._prompt_tokens() if self.controller.moving and self.policy.mixed else 0
        return self.controller.choose(self.n + self.pad, self.n, self.kv, prompts)

    def _prompt_tokens(self) -> int:
        """Prompt tokens that the next step could carry, of the prompt under way and of those waiting (as far as the budget goes)."""
        if self.policy.layer_tokens:
            return 0
        total = self.rem if self.part >= 0 else 0
        for q in self.waiting:
            if total >= self.budget:
                break
            total += self.r.prompt[q]
        return total

    def _growth(self, q: int) -> int:
        """Blocks the decodes lack for ``q`` more tokens each, none past the answer's end; ``target`` keeps what each would hold."""
        n = self.n
        if not n or self.policy.reserve_output:
            return 0
        tokens: NDArray[np.int64] = self.length[:n] + q
        np.minimum(tokens, self.last[:n], out=tokens)
        tokens += self.block - 1
        tokens //= self.block
        self.target = np.maximum(tokens, self.has[:n], out=tokens)
        return int(np.add.reduce(tokens)) - self.n_held

    def _prompts(self, need: int, left: int, starved: bool) -> tuple[list[tuple[int, int]], list[int], int]:
        """Chunks of this step as (tokens, past), the requests whose prompt it completes, and time to fetch swapped KV."""
        chunks: list[tuple[int, int]] = []
        joins: list[int] = []
        extra = 0
        if self.part >= 0 and left > 0:
            c = min(self.rem, left)
            chunks.append((c, self.past))
            left -= c
            self.past += c
            self.rem -= c
            if not self.rem:
                joins.append(self.part)
                self.part = -1
        if not self.waiting or self.part >= 0 or not self.open or starved:
            return chunks, joins, extra
        room = self.free - need
        while self.waiting and left > 0 and self.n + self.pad + len(joins) < self.max_seqs:
            q = self.waiting[0]
            hold, past = self._hold(q)
            c = self.r.prompt[q] - past
            if hold > room or (c > left and not self.policy.chunked and joins):
                break
            extra += self._admit(q, hold)
            room -= hold
            if c > left and self.policy.chunked:
                chunks.append((left, past))
                self.part, self.past, self.rem = q, past + left, c - left
                break
            chunks.append((c, past))
            left -= c
            joins.append(q)
        return chunks, joins, extra

    def _layer_group(self, need: int, starved: bool) -> tuple[list[tuple[int, int]], list[int], int]:
        """The next group of layers of the prompts under way, or the first of new ones; returns as ``_prompts``."""
        extra = 0
        if not self.wave:
            chunks, joins, extra = self._prompts(need, self.policy.layer_tokens, starved)
            self.wave = [(q, c, past) for q, (c, past) in zip(joins, chunks, strict=True)]
            self.groups = min(max(-(-sum(c for c, _ in chunks) // self.policy.layer_tokens), 1), self.n_layers)
            self.group = 0
        chunks = [(c, past) for _, c, past in self.wave]
        self.group += 1
        if self.group < self.groups:
            return chunks, [], extra
        joins = [q for q, _, _ in self.wave]
        self.wave = []
        return chunks, joins, extra

    def _hold(self, q: int) -> tuple[int, int]:
        """(blocks a waiting request would take, tokens of its prompt that need no computing)."""
        r = self.r
        size = r.prompt[q]
        hold = self._blocks(size + r.output[q] - 1 if self.policy.reserve_output else size)
        if self.store is None:
            return hold, r.cached[q]
        hit, shared = self.store.match(q, self.free)
        return hold - shared, max(r.cached[q], min(hit, size - 1))

    def _admit(self, q: int, hold: int) -> int:
        """Take a request off the queue; returns the time to fetch its KV if it was swapped out."""
        self.waiting.popleft()
        if self.store is not None:
            self.store.take(q)
        self.free -= hold
        if not self.r.cached[q]:
            return 0
        self.r.cached[q] = 0
        return self.r.swapped.pop(q, 0)

    def _time(self, rows: int, queries: int, gamma: int, chunks: list[tuple[int, int]], decodes: bool) -> int:
        n = self.n
        if not decodes:
            rows = queries = n = 0
        kv = self.kv + n * (1 + gamma * self.width) if n else 0
        if self.price is not None:
            return self.price.step_ps(rows, kv, chunks)
        t = self.times
        work, attention = queries, 0
        for c, past in chunks:
            work += c
            attention += t.prefill[c] + t.prefill_slope[c] * past
        layers = t.linear[work]
        if self.policy.layer_tokens and chunks:
            layers = (layers + attention + (self.groups - 1) * t.linear[queries]) // self.groups
            attention = 0
        return layers + attention + self.fixed[gamma][rows] + self.per_kv[gamma][n] * kv

    def _decode(self, gamma: int, dt: int) -> None:
        """Every running sequence gains its tokens; those with a whole answer leave."""
        n, length = self.n, self.length[: self.n]
        if self.acceptance is not None:
            row = self.k % ROWS
            if not row:
                self._draw(0, n, self.k)
            runs = self.runs[row, :n]
            if self.controller is not None and self.controller.moving and gamma:
                self.controller.learn(runs, gamma)
            length += np.minimum(runs, gamma)
        length += 1
        np.minimum(length, self.last[:n], out=length)
        if not self.policy.reserve_output:
            self.has[:n] = self.target
            self.n_held = int(np.add.reduce(self.target))
        kv = int(np.add.reduce(length))
        self._log_gaps(n, kv - self.kv, dt)
        self.kv = kv
        done = length == self.last[:n]
        if done.any():
            for q in sorted(self.who[:n][done].tolist()):
                self._leave(q)

    def _log_gaps(self, n: int, tokens: int, dt: int) -> None:
        """Gaps before the ``tokens`` that ``n`` sequences got: the first of each since its last step, the others 0."""
        gaps, counts = self.gaps.ps, self.gaps.counts
        if tokens > n:
            gaps.append(0)
            counts.append(tokens - n)
        if self.policy.mixed:
            gaps.append(dt)
            counts.append(n)
            return
        for t in self.fresh:
            gaps.append(self.now - t)
            counts.append(1)
        gaps.append(self.now - self.last_decode)
        counts.append(n - len(self.fresh))
        self.fresh.clear()
        self.last_decode = self.now

    def _draw(self, first: int, end: int, step: int) -> None:
        """Draws of the sequences in slots ``first`` to ``end`` for decode steps from ``step`` to the end of the table."""
        steps = np.arange(step, (step // ROWS + 1) * ROWS)[:, None]
        assert self.acceptance is not None
        self.runs[step % ROWS :, first:end] = self.acceptance.runs(self.who[first:end], steps - self.began[first:end])

    def _join(self, q: int) -> None:
        """A prompt is complete: its first token leaves, and it decodes from the next step on."""
        r = self.r
        if r.first[q] < 0:
            r.first[q] = self.now
        elif q in r.lost:
            self.gaps.ps.append(self.now - r.lost.pop(q))
            self.gaps.counts.append(1)
        size, last = r.prompt[q], r.prompt[q] + r.output[q] - 1
        blocks = self._blocks(last if self.policy.reserve_output else size)
        if last == size:
            self.free += self._finish(q, blocks)
            return
        i = self.n
        self.slot[q], self.who[i] = i, q
        self.length[i], self.last[i], self.has[i] = size, last, blocks
        self.n, self.kv, self.n_held = i + 1, self.kv + size, self.n_held + blocks
        if self.acceptance is not None:
            self.began[i] = self.k + 1 - self.decoded.pop(q, 0)
            if (self.k + 1) % ROWS:
                self._draw(i, i + 1, self.k + 1)
        if not self.policy.mixed:
            self.fresh.append(self.now)

    def _finish(self, q: int, blocks: int) -> int:
        """A request is complete; returns its blocks but for those of its prefix that others hold."""
        self.r.finish[q] = self.now
        self.n_outstanding -= 1
        return blocks - (self.store.release(q, self.free) if self.store is not None else 0)

    def _leave(self, q: int) -> None:
        """A running sequence is complete; in a static batch it keeps its row and its blocks to the batch's end."""
        blocks = self._finish(q, self._take_out(q))
        if self.policy.padded:
            self.pad += 1
            self.held += blocks
        else:
            self.free += blocks
        if not self.n:
            self.free += self.held
            self.pad = self.held = 0
            self.open = True

    def _take_out(self, q: int) -> int:
        """Remove a running sequence (the last one takes its slot); returns its blocks."""
        i, end = self.slot.pop(q), self.n - 1
        blocks = int(self.has[i])
        self.kv -= int(self.length[i])
        self.n_held -= blocks
        if i != end:
            moved = int(self.who[end])
            self.slot[moved] = i
            for column in (self.who, self.length, self.last, self.has, self.began):
                column[i] = column[end]
            if self.acceptance is not None:
                self.runs[:, i] = self.runs[:, end]
        self.n = end
        return blocks

    def _evict(self) -> None:
        """Preempt from the newest (or least urgent) until every decode left has room for its next token."""
        while self._growth(1) > self.free:
            victim = self._victim()
            if victim in self.slot:
                self._stop(victim)
            else:
                self.part = -1
                self.wave = [member for member in self.wave if member[0] != victim]
                self._give_back(victim, self.r.prompt[victim])
            self.waiting.appendleft(victim)
            self.n_preempted += 1
            if self.log is not None:
                self.log.preempt(self.now, victim)

    def _victim(self) -> int:
        started = [q for q, _, _ in self.wave] + ([self.part] if self.part >= 0 else [])
        if self.policy.by_priority:
            return max([*self.slot, *started], key=lambda q: (self.r.priority[q], q))
        return started[-1] if started else next(reversed(self.slot))

    def _stop(self, q: int) -> None:
        """As ``Replica._stop``: a decoding request goes back to the queue, its answer so far part of its prompt."""
        r, i = self.r, self.slot[q]
        length = int(self.length[i])
        done = length - r.prompt[q] + 1
        if done == 1 and self.fresh:
            self.fresh.pop()
        if self.acceptance is not None:
            self.decoded[q] = self.k + 1 - int(self.began[i])
        blocks = self._take_out(q)
        r.prompt[q] += done
        r.output[q] -= done
        shared = self.store.release(q, self.free) if self.store is not None else 0
        self.free += blocks - shared
        r.lost[q] = self.now
        if self.swap:
            copy_ps = self._blocks(length) * self.swap_ps
            self.penalty += copy_ps
            r.cached[q], r.swapped[q] = length, copy_ps


_EMPTY = StepTimes(linear=[0], decode=[0], decode_slope=[0], prefill=[0], prefill_slope=[0])
"""Stands where a ``StepPrice`` is asked instead."""


def stepping_replicas(
    requests: Requests,
    times: StepTimes | StepPrice,
    verify: VerifyTimes | None,
    policy: Policy,
    limits: Limits,
    stores: Sequence[PrefixCache | None],
    speculation: Speculation | None,
    n_layers: int,
    seed: int,
) -> list[SteppingReplica]:
    """One replica a store, alike, each with its own controller; all draw from one seed."""
    parts: list[tuple[Controller, Acceptance] | None] = [None] * len(stores)
    if speculation is not None and verify is not None:
        draws = Acceptance(speculation, len(requests), seed)
        parts = [(Controller(speculation, verify, limits.max_seqs, limits.budget), draws) for _ in stores]
    tables = verify.times if verify is not None else times
    return [
        SteppingReplica(requests, tables, policy, limits, store, speculation=part, n_layers=n_layers)
        for store, part in zip(stores, parts, strict=True)
    ]
