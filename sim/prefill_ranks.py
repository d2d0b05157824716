"""A prefill worker of a split deployment whose attention ranks each have a queue of their own, and step together."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from ..costmodels.serving_ops import by_all_to_all
from ..costmodels.step_times import PS, StepTimes
from ..scenarios.errors import BadInput
from ..scenarios.serving import EnginePlan
from .clock import NEVER
from .engine import Replica
from .policies import Policy
from .replica_kind import ReplicaModel
from .replica_state import Limits
from .requests import Requests

Piece = tuple[int, int, int, int]
"""Request, its rank, tokens of it in a step, tokens of it computed before."""


@dataclass(slots=True)
class Step:
    """The pieces of one step, the requests whose prompts end with it, and when it starts and ends."""

    pieces: list[Piece]
    joins: list[int]
    start: int = 0
    end: int = NEVER


class PrefillRanks(Replica):
    """Computes prompts only. A request belongs to the attention rank that its random room number names, whatever waits there.

    A rank takes prompts from its own queue, in chunks of its share of the token budget, while it has seats and KV; both are a request's
    until its KV has left. All ranks step together: a step lasts as long as its busiest rank's own work and the experts' over all, and a
    rank without a prompt idles. The host forms a step when the one before it starts, so what comes later waits for the one after, unless
    nothing was there to form one.

    The host launches a step before it looks at the results of the one before it. Where the GPU is the slower of the two that costs nothing.
    A step no longer than its launches (``launch_ps``) keeps the host busy: the next is formed once it ends, and its own prompts' KV starts
    to leave once the next is launched. Where the host waits for the GPU in every layer (``waits``: DeepEP's kernels for many tokens tell it
    how many rows come) that is once the next has ended.
    Source: SGLang's disaggregated prefill scheduler: event_loop_overlap_disagg_prefill, load balance by ``bootstrap_room``, and
    a request slot and KV that are released once the transfer is done.
    """

    def __init__(
        self,
        requests: Requests,
        times: StepTimes,
        policy: Policy,
        limits: Limits,
        *,
        seed: int = 0,
        launch_ps: int = 0,
        waits: bool = False,
    ) -> None:
        super().__init__(requests, times, policy, limits)
        n = times.ranks
        draw = Random(seed)
        self.rank_of = [draw.randrange(n) for _ in range(len(requests))]
        self.queues: list[deque[int]] = [deque() for _ in range(n)]
        self.parts: list[tuple[int, int] | None] = [None] * n
        self.rank_seats, self.rank_blocks = [max(limits.max_seqs // n, 1)] * n, [limits.blocks // n] * n
        self.flight: Step | None = None
        self.formed: Step | None = None
        self.tried = False
        self.launch, self.waits = launch_ps, waits
        self.unseen: Step | None = None
        self.seen_at = NEVER

    def submit(self, request: int) -> bool:
        """As ``ReplicaState.submit``; a rank's part of the pool must hold the prompt."""
        if self._blocks(self.r.prompt[request]) > self.blocks // self.ranks:
            self.r.rejected.append(request)
            return False
        return super().submit(request)

    def run(self, until: int = NEVER) -> None:
        """Play every event before ``until`` (ps): requests that come, steps that end, steps that start."""
        ready, pending = self.r.ready, self.pending
        while not self.seen:
            news = ready[pending[self.next_pending]] if self.next_pending < len(pending) else NEVER
            flight = self.flight
            at = max(min(flight.end if flight else NEVER, news, self.seen_at), self.now)
            if flight is None and not self.tried and any(self.queues):
                at = self.now
            if at >= until:
                break
            self.now = at
            while news <= at:
                q = pending[self.next_pending]
                self.queues[self.rank_of[q]].append(q)
                self.next_pending, self.tried = self.next_pending + 1, False
                news = ready[pending[self.next_pending]] if self.next_pending < len(pending) else NEVER
            if self.unseen is not None and self.seen_at <= at:
                self._land(self.unseen)
                self.unseen, self.seen_at = None, NEVER
            if flight is not None and flight.end > at:
                continue
            following = self.formed or self._form()
            if flight is not None and following.pieces and self._busies_host(flight):
                self._start(following)
                self.unseen, self.seen_at = flight, following.end if self.waits else min(following.end, at + self.launch)
                continue
            if flight is not None:
                self._land(flight)
            self._start(following)

    def stirs(self) -> int:
        """As ``ReplicaState.stirs``: when the step under way ends, or the host looks at the one before it."""
        return min(self.flight.end, self.seen_at) if self.flight is not None else self.now

    def _busies_host(self, step: Step) -> bool:
        """Whether the host has no time beside the launches of a step."""
        return self.waits or self.times.linear[sum(c for _, _, c, _ in step.pieces)] <= self.launch

    def let_go(self, request: int) -> None:
        """Free the seat and the KV of a request whose KV has left."""
        rank, blocks = self.rank_of[request], self._blocks(self.r.prompt[request])
        self.rank_seats[rank] += 1
        self.rank_blocks[rank] += blocks
        self.free += blocks
        self.tried = False

    def _start(self, step: Step) -> None:
        """Start a step and, if the host has time, form the next; without a piece there is none until something comes or leaves."""
        self.formed = None
        if not step.pieces:
            self.flight, self.tried = None, True
            return
        took = self._takes(step)
        step.start, step.end = self.now, self.now + took
        self.flight = step
        self.busy_ps += took
        self.n_steps += 1
        if self.log is not None:
            tokens = sum(c for _, _, c, _ in step.pieces)
            self.log.add(self.now, step.end, 1, tokens, tokens, 0, len(step.pieces), 0, sum(map(len, self.queues)), self.free)
        if not self._busies_host(step):
            following = self._form()
            self.formed = following if following.pieces else None

    def _form(self) -> Step:
        """What each rank takes next: the prompt it has begun, then those of its queue."""
        step = Step([], [])
        r = self.r
        for rank, queue in enumerate(self.queues):
            left, part = self.rank_budget, self.parts[rank]
            while left > 0 and (part is not None or queue):
                if part is None:
                    q, past = queue[0], 0
                    blocks = self._blocks(r.prompt[q])
                    if self.rank_seats[rank] < 1 or blocks > self.rank_blocks[rank]:
                        break
                    queue.popleft()
                    self.rank_seats[rank] -= 1
                    self.rank_blocks[rank] -= blocks
                    self.free -= blocks
                else:
                    q, past = part
                c = min(r.prompt[q] - past, left)
                left -= c
                step.pieces.append((q, rank, c, past))
                part = (q, past + c) if past + c < r.prompt[q] else None
                if part is None:
                    step.joins.append(q)
            self.parts[rank] = part
        return step

    def _takes(self, step: Step) -> int:
        """Time of a step in ps, see ``StepTimes``."""
        t = self.times
        tokens, attention = [0] * t.ranks, [0] * t.ranks
        for _, rank, c, past in step.pieces:
            tokens[rank] += c
            attention[rank] += t.prefill[c] + t.prefill_slope[c] * past
        total = sum(tokens)
        uneven = max(t.own[max(tokens)] - t.own[-(-total // t.ranks)], 0) if t.ranks > 1 else 0
        return t.linear[total] + t.decode[0] + uneven + max(attention)

    def _land(self, step: Step) -> None:
        """The host looks at a step: its prompts have their first token; those that end with it keep seat and KV until they are let go."""
        r = self.r
        for q in step.joins:
            if r.first[q] < 0:
                r.first[q] = self.now
            r.finish[q] = self.now
            self.n_outstanding -= 1
            if self.seen is not None:
                self.seen.append((q, step.end - step.start))


def prefill_ranks(kind: ReplicaModel, plan: EnginePlan, requests: Requests, n: int, seed: int) -> list[Replica]:
    """``n`` idle prefill workers of one kind. Raises BadInput where their steps are not a sum of prompts' pieces, or share prefixes."""
    times = kind.times
    if not isinstance(times, StepTimes) or plan.speculation or plan.prefix_cache or kind.policy.layer_tokens:
        raise BadInput("decode_first plays prefill workers without stages, speculation, prefix caches and layered prefill; drop those")
    launch_ps, waits = round(kind.launch_s * PS), by_all_to_all(plan)
    return [PrefillRanks(requests, times, kind.policy, kind.limits, seed=seed + i, launch_ps=launch_ps, waits=waits) for i in range(n)]
