"""One serving replica: continuous batching over a paged KV cache, with constant work per engine step.

Every running decode gains one token a step, so nothing is touched per request until it finishes: the replica keeps how many decode
(``n``), the sum of their cached tokens (``kv``), a step counter (``k``), a heap of (finish step, request) and one partly prefilled
prompt. Blocks grow when ``length mod block`` wraps, so one counter per remainder says how many each step needs. Steps without a
prompt are skipped in closed form up to the next finish or arrival: their time is affine in ``kv``, and whole picoseconds sum exactly.
"""

from __future__ import annotations

from heapq import heappop, heappush

from .clock import NEVER
from .gaps import FOLD
from .preempt import preempt
from .replica_state import ReplicaState
from .step_count import steps_before, steps_that_fit


class Replica(ReplicaState):
    """One engine. ``submit`` requests in order of ``ready``, then ``run(until)``; results land in the shared ``Requests``.

    Where ``seen`` is a list, ``run`` appends (request, its last step's time) of each that finishes, and returns after such a step; where
    ``ahead`` is one it appends the start of every step, and plays on. Where ``hold`` is set, a request that ends with its prompt keeps its
    KV until ``let_go``.
    """

    __slots__ = ()

    def run(self, until: int = NEVER) -> None:
        """Play every step that starts before ``until`` (ps); requests ready by then must have been submitted."""
        prompt, output, cached, ready, first, finish, end, lost = self.columns
        linear, decode, slope, chunk_ps, chunk_slope, beside, beside_slope, idle, ranks = self.tables
        chunked, mixed, refill, padded, reserve, fcfs, budget, max_seqs, block, bits, mask, longest_piece = self.rules
        waiting, pending, heap, grow, order, loading, landed, gaps, counts, fresh = self.lists
        p, times, store = self.next_pending, self.times, self.store
        now, k, n, kv, pad, free = self.now, self.k, self.n, self.kv, self.pad, self.free
        part, past, rem, opened, held = self.part, self.past, self.rem, self.open, self.held
        last_decode, n_steps, busy, n_done = self.last_decode, self.n_steps, self.busy_ps, 0
        log, seen, ahead, keep = self.log, self.seen, self.ahead, self.hold
        next_ready = ready[pending[p]] if p < len(pending) else NEVER
        next_end = heap[0] >> bits if heap else NEVER
        loads = store is not None and store.tiers is not None
        next_land = loading[0][0] if loading else NEVER
        joins: list[int] = []
        pieces: list[tuple[int, int]] = []

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
            longest = 0
            left = budget - tokens
            if ranks > 1:
                self.part = part
                left = self._ranks_left(left, tokens)
            if part >= 0 and left > 0:
                c = rem if rem < left else left
                asked = chunk_ps[c] + chunk_slope[c] * past
                attention += asked
                tokens += c
                longest = c
                left -= c
                past += c
                rem -= c
                if ranks > 1:
                    pieces.append((c, asked))
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
                    past = cached[q]
                    hold = 0 if landed else -(-(size + output[q] - 1 if reserve else size) // block)
                    if store is not None:
                        hit, shared = store.match(q, free)
                        hold -= shared
                        past = max(past, min(hit, size - 1))
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
                        attention += self.r.swapped.pop(q, 0)
                        cached[q] = 0
                    room -= hold
                    free -= hold
                    asked = chunk_ps[c] + chunk_slope[c] * past
                    attention += asked
                    tokens += c
                    if c > longest:
                        longest = c
                    left -= c
                    seats -= 1
                    if ranks > 1:
                        pieces.append((c, asked))
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
                        m = steps_before(limit - now, fixed + per_kv * kv, per_kv * n) + 1
                    if not reserve and m > 1:
                        cycles, rest = divmod(m, block)
                        at = (k + 1) % block
                        grown = cycles * n + sum(grow[at : at + rest])
                        if at + rest > block:
                            grown += sum(grow[: at + rest - block])
                        m, need = (m, grown) if grown <= free else steps_that_fit(free, grow, at)
                dt = m * fixed + per_kv * (m * kv + n * (m * (m + 1) >> 1)) + attention
                k += m
                kv += n * m
                free -= need
                n_steps += m
                opened = refill
            else:
                if pieces:
                    attention += times.uneven_ps(decoding, pieces, len(waiting) + len(landed), longest_piece)
                    pieces = []
                if mixed:
                    kv += n
                    dt = linear[tokens] + decode[n] + beside[n] + (slope[n] + beside_slope[n]) * kv + idle[longest] * n + attention
                    k += 1
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
            if ahead is not None:
                ahead.append(now - dt)

            # 4. token gaps
            if not n:
                pass
            elif mixed:
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
                    elif q in lost:
                        gaps.append(now - lost.pop(q))
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
            if seen and ahead is None:
                break

        self.now, self.k, self.n, self.kv, self.pad, self.free, self.next_pending = now, k, n, kv, pad, free, p
        self.part, self.past, self.rem, self.open, self.held, self.last_decode = part, past, rem, opened, held, last_decode
        self.n_steps, self.busy_ps = n_steps, busy
        self.n_outstanding -= n_done

    def take_over(self, request: int, at: int) -> None:
        """Serve a request whose prompt's KV (``cached``) lies here from ``at`` (ps) on, in blocks that were taken from ``free`` before."""
        heappush(self.loading, (at, request))
        self.n_outstanding += 1
