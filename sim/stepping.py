"""One serving replica that plays every step: for speculation, layered prefill and step times without a closed form.

Running sequences are columns of arrays, so a step costs a dozen array operations whatever its batch; rules, units and results are those
of ``Replica``, which it equals bit for bit where both apply.
"""

from __future__ import annotations

from heapq import heappop

import numpy as np

from ..costmodels.step_times import StepTimes
from ..scenarios.errors import BadInput
from .admission import AdmittingReplica
from .batch import Batch
from .clock import NEVER
from .gaps import FOLD
from .kvstore import PrefixStore
from .policies import Policy
from .preempt_batch import preempt_from, released
from .replica_state import Limits
from .requests import Requests
from .speculate import Acceptance, Controller
from .step_price import StepPrice


class SteppingReplica(AdmittingReplica):
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
        store: PrefixStore | None = None,
        *,
        speculation: tuple[Controller, Acceptance] | None = None,
        n_layers: int = 1,
    ) -> None:
        affine = isinstance(times, StepTimes)
        if not affine and (speculation or policy.layer_tokens):
            raise BadInput(f"speculation and policy={policy.name} need affine step tables; drop them or the attention-FFN split")
        super().__init__(requests, times if isinstance(times, StepTimes) else _EMPTY, policy, limits, store)
        self.controller: Controller | None = speculation[0] if speculation else None
        self.price = None if isinstance(times, StepTimes) else times
        self.swap_ps = times.swap
        verify = self.controller.verify if self.controller else None
        self.layers = verify.layers if verify else [self.times.linear]
        self.fixed = verify.fixed if verify else [self.times.decode]
        self.per_kv = verify.per_kv if verify else [self.times.decode_slope]
        self.width = verify.width if verify else 1
        self.n_layers, self.seats = n_layers, self.max_seqs
        self.batch = Batch(self.max_seqs, self.block, speculation[1] if speculation else None)
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
        ready, pending, loading = self.r.ready, self.pending, self.loading
        while self.now < until and not self.seen:
            p = self.next_pending
            while p < len(pending) and ready[pending[p]] <= self.now:
                self.waiting.append(pending[p])
                p += 1
            self.next_pending = p
            while loading and loading[0][0] <= self.now:
                self.landed.append(heappop(loading)[1])
            if not (self.batch.n or self.part >= 0 or self.wave or self.waiting or self.landed) or not self._step():
                event = min(ready[pending[p]] if p < len(pending) else NEVER, loading[0][0] if loading else NEVER)
                if event >= until:
                    break
                self.now, self.open = event, True
        self.n, self.kv = self.batch.n, self.batch.kv

    def _step(self) -> bool:
        """One step; False when nothing could run: all that waits has its room taken by prompts on their way from a tier."""
        policy, batch = self.policy, self.batch
        gamma, extra, need = self._guesses(), 0, 0
        if not policy.reserve_output:
            need = batch.growth(1 + gamma * self.width)
            if gamma and need > self.free:
                gamma, need = 0, batch.growth(1)
        starved = need > self.free
        if starved:
            extra = preempt_from(self)
            need = batch.growth(1)
        n = batch.n
        queries = (n + self.pad) * (1 + gamma * self.width)
        if policy.layer_tokens:
            chunks, joins, fetched = self._layer_group(need, starved)
        else:
            chunks, joins, fetched = self._prompts(need, self._left(queries if policy.mixed else 0), starved)
        if not chunks and not n:
            self.now += extra
            self.busy_ps += extra
            self.open = True
            return starved
        decodes = policy.mixed or not chunks
        dt = self._time(queries, gamma, chunks, decodes) + extra + fetched
        self.now += dt
        self.busy_ps += dt
        self.n_steps += 1
        if not chunks:
            self.open = policy.refill
        if decodes:
            self.free -= need
        if self.log is not None:
            asked = sum(c for c, _ in chunks)
            began = len(joins) + (self.part >= 0) + len(self.wave)
            decoded = queries if decodes else 0
            self.log.add(self.now - dt, self.now, 1, decoded + asked, asked, n, began, batch.kv, len(self.waiting), self.free)
        if self.controller is not None and self.controller.moving:
            self.controller.watch(self.now, dt, bool(chunks))
        if decodes and n:
            self._decode(gamma, dt)
        for q in joins:
            self._join(q, dt)
        if len(self.gaps.ps) > FOLD:
            self.gaps.fold()
        return True

    def _guesses(self) -> int:
        """γ of the next step."""
        batch, controller = self.batch, self.controller
        if not batch.n or controller is None:
            return 0
        prompts = self._prompt_tokens() if controller.moving and self.policy.mixed else 0
        return controller.choose(batch.n + self.pad, batch.n, batch.kv, prompts, len(self.waiting) + (self.part >= 0))

    def _time(self, queries: int, gamma: int, chunks: list[tuple[int, int]], decodes: bool) -> int:
        """The step's own time: ``queries`` tokens of decodes (none while prompts run alone) and the prompts' chunks."""
        n = self.batch.n if decodes else 0
        rows, queries = (n + self.pad, queries) if decodes else (0, 0)
        kv = self.batch.kv + n * (1 + gamma * self.width) if n else 0
        if self.price is not None:
            return self.price.step_ps(rows, kv, chunks)
        decoding = self.layers[gamma][rows]
        work = self._mixed_ps(queries, chunks, n, kv) if chunks else decoding
        if self.policy.layer_tokens and chunks:
            work = (work + (self.groups - 1) * decoding) // self.groups
        return work + self.fixed[gamma][rows] + self.per_kv[gamma][n] * kv

    def last_left(self) -> int:
        """When the sequences of the step that is being put together got their last tokens."""
        return self.now

    def _left(self, beside: int) -> int:
        """Tokens of a step that are left for prompts beside so many of decodes."""
        left = self.budget - beside
        return self._ranks_left(left, beside) if self.ranks > 1 else left

    def _mixed_ps(self, queries: int, chunks: list[tuple[int, int]], n: int, kv: int) -> int:
        """A step with prompts: ``linear``, attention of their chunks, what is uneven over ranks, what ``n`` decodes beside cost more."""
        t, tokens, attention = self.times, queries, 0
        pieces = [(c, t.prefill[c] + t.prefill_slope[c] * past) for c, past in chunks]
        for c, asked in pieces:
            tokens += c
            attention += asked
        if self.ranks > 1:
            attention += t.uneven_ps(queries, pieces, len(self.waiting) + len(self.landed), self.longest_piece)
        if n:
            attention += t.shared_ps(n, kv, max(c for c, _ in chunks))
        return t.linear[tokens] + attention

    def _compute_ps(self, tokens: int, past: int) -> int:
        """As ``Replica._compute_ps``."""
        if self.price is None:
            return super()._compute_ps(tokens, past)
        c = self.budget if self.policy.chunked else tokens
        return sum(self.price.step_ps(0, 0, [(min(c, tokens - at), past + at)]) for at in range(0, tokens, c))

    def _decode(self, gamma: int, dt: int) -> None:
        """Every running sequence gains its tokens; those with a whole answer leave."""
        batch = self.batch
        n = batch.n
        gained, gains, done = batch.advance(gamma, grow=not self.policy.reserve_output)
        if gamma and self.controller is not None and self.controller.moving:
            self.controller.learn(gained - n, int(np.count_nonzero(gains <= gamma)))
        self._log_gaps(n, gained, dt)
        for q in done:
            self._leave(q, dt)

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

    def _join(self, q: int, dt: int) -> None:
        """A prompt is complete: its first token leaves, and it decodes from the next step on."""
        r = self.r
        if r.first[q] < 0:
            r.first[q] = self.now
        elif q in r.lost:
            self.gaps.ps.append(self.now - r.lost.pop(q))
            self.gaps.counts.append(1)
        size, last = r.prompt[q], r.prompt[q] + r.output[q] - 1
        if last > size:
            self.batch.join(q, size, last, self._blocks(last if self.policy.reserve_output else size))
            if not self.policy.mixed:
                self.fresh.append(self.now)
        elif self.hold:
            self._finish(q, dt)
        else:
            self._finish(q, dt)
            self.free += self._blocks(size) - released(self, q)

    def _finish(self, q: int, dt: int) -> None:
        """A request is complete."""
        self.r.finish[q] = self.now
        self.n_outstanding -= 1
        if self.seen is not None:
            self.seen.append((q, dt))

    def _leave(self, q: int, dt: int) -> None:
        """A running sequence is complete: its blocks are free but for shared ones; a static batch keeps them, and its row, to the end."""
        self._finish(q, dt)
        blocks = self.batch.leave(q)[1] - released(self, q)
        if self.policy.padded:
            self.pad += 1
            self.held += blocks
        else:
            self.free += blocks
        if not self.batch.n:
            self.free += self.held
            self.pad = self.held = 0
            self.open = True


_EMPTY = StepTimes(linear=[0], decode=[0], decode_slope=[0], prefill=[0], prefill_slope=[0])
"""Stands where a ``StepPrice`` is asked instead."""
