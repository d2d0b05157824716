"""One serving replica: continuous batching over a paged KV cache, with constant work per engine step.

Every running decode gains one token a step, so nothing is touched per request until it finishes: the replica keeps how many decode
(``n``), the sum of their cached tokens (``kv``), a step counter (``k``), a heap of (finish step, request) and one partly prefilled
prompt. Blocks grow when ``length mod block`` wraps, so one counter per remainder says how many each step needs. Steps without a
prompt are skipped in closed form up to the next finish or arrival: their time is affine in ``kv``, and whole picoseconds sum exactly.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from ..costmodels.step_times import StepTimes
from ..scenarios.errors import BadInput
from .gaps import FOLD, GapHistogram
from .kvstore import PrefixStore
from .policies import Policy, PriorityQueue, Waiting
from .preempt import give_back, preempt
from .requests import Requests
from .step_log import StepLog

NEVER = 1 << 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a step may carry (``budget`` tokens, ``max_seqs`` sequences) and the KV pool; ``swap``: preempted KV moves to the host.

    Raises BadInput unless every limit is at least 1 and a step has a token for each sequence.
    """

    budget: int
    max_seqs: int
    blocks: int
    block_tokens: int
    swap: bool = False

    def __post_init__(self) -> None:
        for name in ("budget", "max_seqs", "blocks", "block_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_seqs > self.budget:
            raise BadInput(
                f"max_num_seqs={self.max_seqs} is over the token budget of {self.budget}; raise the budget or lower max_num_seqs"
            )


class Replica:
    """One engine. ``submit`` requests in order of ``ready``, then ``run(until)``; results land in the shared ``Requests``.

    Where ``seen`` is a list, ``run`` returns after each step that finished requests and appends (request, that step's time) of each. Where
    ``hold`` is set, a request that ends with its prompt keeps its KV until ``let_go``.
    """

    def __init__(self, requests: Requests, times: StepTimes, policy: Policy, limits: Limits, store: PrefixStore | None = None) -> None:
        if store is not None and policy.padded:
            raise BadInput(f"policy={policy.name} keeps finished rows in the batch and shares no prefixes; turn the prefix cache off")
        self.store = store
        self.r, self.times, self.policy, self.swap = requests, times, policy, limits.swap
        self.budget, self.max_seqs, self.blocks, self.block = limits.budget, limits.max_seqs, limits.blocks, limits.block_tokens
        self.pending = array("q")
        self.next_pending = 0
        self.waiting: Waiting = PriorityQueue(requests.priority) if policy.by_priority else deque()
        self.now = self.k = self.n = self.kv = 0
        self.free = limits.blocks
        self.part, self.past, self.rem = -1, 0, 0
        self.pad, self.held, self.open = 0, 0, True
        self.heap: list[int] = []
        self.grow = [0] * limits.block_tokens
        self.order: list[int] = []
        self.bits = len(requests).bit_length()
        self.n_steps = self.busy_ps = self.n_preempted = self.n_outstanding = 0
        self.gaps = GapHistogram()
        self.last_decode = 0
        self.fresh: list[int] = []
        self.loading: list[tuple[int, int]] = []
        self.landed: deque[int] = deque()
        self.log: StepLog | None = None
        self.seen: list[tuple[int, int]] | None = None
        self.hold = False

    def submit(self, request: int) -> bool:
        """Queue a request; False (and noted as rejected) when the whole KV pool could not hold it, or no step could carry its prompt."""
        r = self.r
        last = r.prompt[request] + r.output[request] - 1
        too_long = not self.policy.chunked and r.prompt[request] + self.max_seqs > len(self.times.linear)
        if too_long or self._blocks(last) > self.blocks:
            r.rejected.append(request)
            return False
        self.pending.append(request)
        self.n_outstanding += 1
        return True

    def run(self, until: int = NEVER) -> None:
        """Play every step that starts before ``until`` (ps); requests ready by then must have been submitted."""
        r, times, policy, waiting, store = self.r, self.times, self.policy, self.waiting, self.store
        prompt, output, cached, ready, first, finish, end = r.prompt, r.output, r.cached, r.ready, r.first, r.finish, r.end
        linear, decode, slope, chunk_ps, chunk_slope = times.linear, times.decode, times.decode_slope, times.prefill, times.prefill_slope
        chunked, mixed, refill, padded = policy.chunked, policy.mixed, policy.refill, policy.padded
        reserve, fcfs = policy.reserve_output, not policy.by_priority
        budget, max_seqs, block, bits = self.budget, self.max_seqs, self.block, self.bits
        pending, p, heap, grow, order, mask = self.pending, self.next_pending, self.heap, self.grow, self.order, (1 << self.bits) - 1
        now, k, n, kv, pad, free = self.now, self.k, self.n, self.kv, self.pad, self.free
        part, past, rem, opened, held = self.part, self.past, self.rem, self.open, self.held
        gaps, counts, fresh, last_decode = self.gaps.ps, self.gaps.counts, self.fresh, self.last_decode
        n_steps, busy, n_done, log, seen, keep = self.n_steps, self.busy_ps, 0, self.log, self.seen, self.hold
        next_ready = ready[pending[p]] if p < len(pending) else NEVER
        next_end = heap[0] >> bits if heap else NEVER
        loading, landed, loads = self.loading, self.landed, store is not None and store.tiers is not None
        next_land = loading[0][0] if loading else NEVER
        joins: list[int] = []

        while now < until:
            while next_ready <= now:
                waiting.append(pending[p])
                p += 1
                next_ready = ready[pending[p]] if p < len(pending) else NEVER
            while next_land <= now:
                landed.append(heappop(loading)[1])
                next_land = loading[0][0] if loading else NEVER
            if not n and part < 0 and not waiting and not landed:
                at = min(next_ready, next_land)
                if at >= until:
                    break
                now = at
                continue

            # 1. room for one more token of everything that decodes
            attention, starved = 0, False
            need = grow[(k + 1) % block]
            if need > free:
                self.now, self.k, self.n, self.kv, self.free, self.part = now, k, n, kv, free, part
                attention, starved = preempt(self), True
                n, kv, free, part = self.n, self.kv, self.free, self.part
                need = grow[(k + 1) % block]
                next_end = heap[0] >> bits if heap else NEVER

            # 2. prompts: the one begun before, then the waiting, in what the budget leaves
            tokens = decoding = n if mixed else 0
            left = budget - tokens
            if part >= 0 and left > 0:
                c = rem if rem < left else left
                attention += chunk_ps[c] + chunk_slope[c] * past
                tokens += c
                left -= c
                past += c
                rem -= c
                if not rem:
                    joins.append(part)
                    part = -1
            if (waiting or landed) and part < 0 and opened and not starved:
                room = free - need
                seats = max_seqs - n - pad - len(joins)
                while seats > 0 and left > 0:
                    queue = landed or waiting
                    q = queue[0]
                    size = prompt[q]
                    hold = -(-(size + output[q] - 1 if reserve else size) // block)
                    past = cached[q]
                    if store is not None:
                        hit, shared = store.match(q, free)
                        hold = -shared if landed else hold - shared
                        past = max(past, min(hit, size - 1))
                    elif landed:
                        hold = 0
                    if hold > room:
                        break
                    if loads and not landed:
                        lands = self._fetch(q, past, now)
                        if lands:
                            waiting.popleft()
                            room -= hold
                            free -= hold
                            next_land = min(next_land, lands)
                            if not waiting:
                                break
                            continue
                    c = size - past
                    if c > left:
                        if chunked:
                            part, rem, c = q, c - left, left
                        elif joins:
                            break
                    queue.popleft()
                    if store is not None:
                        store.take(q)
                    if cached[q]:
                        attention += r.swapped.pop(q, 0)
                        cached[q] = 0
                    room -= hold
                    free -= hold
                    attention += chunk_ps[c] + chunk_slope[c] * past
                    tokens += c
                    left -= c
                    seats -= 1
                    if part >= 0:
                        past += c
                        break
                    joins.append(q)
                    if not waiting and not landed:
                        break

            # 3. the step's time
            if tokens == decoding:
                if not n:  # prompts on their way from a tier hold the room of all that wait
                    at = now + attention if starved else min(next_ready, next_land)
                    if not starved and at >= until:
                        break
                    busy += attention
                    now, opened = at, True
                    continue
                rows = n + pad
                fixed, per_kv = linear[rows] + decode[rows], slope[n]
                m = 1 if starved else next_end - k
                if m > 1:
                    limit = until if (waiting and fcfs) or until < next_ready else next_ready
                    if next_land < limit:
                        limit = next_land
                    j = m - 1
                    if now + j * fixed + per_kv * (j * kv + n * (j * m >> 1)) >= limit:
                        m = _steps_before(limit - now, fixed + per_kv * kv, per_kv * n) + 1
                    if not reserve and m > 1:
                        cycles, rest = divmod(m, block)
                        grown = cycles * n + sum([grow[(k + i) % block] for i in range(1, rest + 1)])
                        if grown > free:
                            m = 1
                        else:
                            need = grown
                dt = m * fixed + per_kv * (m * kv + n * (m * (m + 1) >> 1)) + attention
                k += m
                kv += n * m
                free -= need
                n_steps += m
                opened = refill
            else:
                if mixed:
                    dt = linear[tokens] + decode[n] + slope[n] * (kv + n) + attention
                    k += 1
                    kv += n
                    free -= need
                else:
                    dt = linear[tokens] + decode[0] + attention
                n_steps += 1
                m = 1
            now += dt
            busy += dt
            if log is not None:
                decoded = n * m if mixed or not tokens else 0
                asked = tokens - decoding
                log.add(now - dt, now, m, decoded + asked, asked, n, len(joins) + (part >= 0), kv, len(waiting), free)

            # 4. token gaps
            if mixed:
                gaps.append(dt // m)
                counts.append(n * m)
            elif not tokens:
                since = now - last_decode - dt + dt // m
                for t in fresh:
                    gaps.append(now - t - dt + dt // m)
                    counts.append(1)
                gaps.append(since)
                counts.append(n - len(fresh))
                gaps.append(dt // m)
                counts.append(n * (m - 1))
                fresh.clear()
                last_decode = now
            if len(gaps) > FOLD:
                self.gaps.fold()

            # 5. those that finish, those that start to decode
            if next_end == k:
                while heap and heap[0] >> bits == k:
                    q = heappop(heap) & mask
                    finish[q] = now
                    n_done += 1
                    if seen is not None:
                        seen.append((q, dt // m))
                    length = prompt[q] + output[q] - 1
                    n -= 1
                    kv -= length
                    if not reserve:
                        grow[(k - output[q] + 2 - prompt[q]) % block] -= 1
                    blocks = -(-length // block)
                    if store is not None:
                        blocks -= store.release(q, free)
                    if padded:
                        pad += 1
                        held += blocks
                    else:
                        free += blocks
                next_end = heap[0] >> bits if heap else NEVER
                if not n:
                    free += held
                    pad = held = 0
                    opened = True
                    order.clear()
            if joins:
                for q in joins:
                    if first[q] < 0:
                        first[q] = now
                    elif q in r.lost:
                        gaps.append(now - r.lost.pop(q))
                        counts.append(1)
                    steps = output[q] - 1
                    if not steps:
                        finish[q] = now
                        n_done += 1
                        if seen is not None:
                            seen.append((q, dt))
                        if keep:
                            continue
                        shared = store.release(q, free) if store is not None else 0
                        free += -(-prompt[q] // block) - shared
                        continue
                    last = k + steps
                    end[q] = last
                    heappush(heap, last << bits | q)
                    if last < next_end:
                        next_end = last
                    if not reserve:
                        grow[(k + 1 - prompt[q]) % block] += 1
                    n += 1
                    kv += prompt[q]
                    order.append(q)
                    if not mixed:
                        fresh.append(now)
                joins.clear()
            if seen:
                break

        self.now, self.k, self.n, self.kv, self.pad, self.free, self.next_pending = now, k, n, kv, pad, free, p
        self.part, self.past, self.rem, self.open, self.held, self.last_decode = part, past, rem, opened, held, last_decode
        self.n_steps, self.busy_ps = n_steps, busy
        self.n_outstanding -= n_done

    def take_over(self, request: int, at: int) -> None:
        """Serve a request whose prompt's KV (``cached``) lies here from ``at`` (ps) on, in blocks that were taken from ``free`` before."""
        heappush(self.loading, (at, request))
        self.n_outstanding += 1

    def let_go(self, request: int) -> None:
        """Free the KV of a request that ended with its prompt under ``hold``."""
        give_back(self, request, self.r.prompt[request])

    def queued_blocks(self) -> int:
        """KV blocks that the prompts not yet admitted will take."""
        r = self.r
        return sum(self._blocks(r.prompt[q]) for q in [*self.waiting, *self.pending[self.next_pending :]])

    def peek(self, request: int) -> int:
        """Prompt tokens of the request that this replica's prefix cache would save; 0 without one. Changes nothing."""
        return self.store.peek(request, self.free) if self.store is not None else 0

    def _fetch(self, q: int, past: int, now: int) -> int:
        """When the KV that tiers hold of this request lands, in ps; 0 when it may be admitted at once."""
        assert self.store is not None
        if self.loading:
            self.store.landed(now)
        lands = self.store.fetch(q, now, past, self._compute_ps)
        if lands:
            heappush(self.loading, (lands, q))
        return lands

    def _compute_ps(self, tokens: int, past: int) -> int:
        """Time to compute ``tokens`` of a prompt after ``past`` with nothing beside it, in chunks of the token budget."""
        t, c = self.times, self.budget if self.policy.chunked else tokens
        full, rest = divmod(tokens, c)
        whole = t.linear[c] + t.prefill[c] + t.prefill_slope[c] * past
        ps = full * whole + t.prefill_slope[c] * c * (full * (full - 1) // 2)
        return ps + (t.linear[rest] + t.prefill[rest] + t.prefill_slope[rest] * (past + full * c) if rest else 0)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)


def _steps_before(span: int, first: int, growth: int) -> int:
    """Most steps whose total ``j·first + growth·j(j+1)/2`` stays under ``span`` (all in ps, ``first > 0``)."""
    half = growth / 2
    linear = first + half
    j = int(2 * span / (linear + math.sqrt(linear * linear + 4 * half * span)))
    while j > 0 and j * first + growth * (j * (j + 1) >> 1) >= span:
        j -= 1
    while (j + 1) * first + growth * ((j + 1) * (j + 2) >> 1) < span:
        j += 1
    return j
