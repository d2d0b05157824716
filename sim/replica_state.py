"""What a serving replica holds between steps: its queues, batch, KV pool, and how requests come in."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from heapq import heappush

from ..costmodels.step_times import StepTimes
from ..scenarios.errors import BadInput
from .gaps import GapHistogram
from .kvstore import PrefixStore
from .policies import Policy, PriorityQueue, Waiting
from .preempt import give_back
from .requests import Requests
from .step_log import StepLog


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


ANY_LENGTH = 1 << 62
"""Tokens of a piece that no budget cuts."""


class ReplicaState:
    """Counters, queues and limits of one engine, in ps, tokens and KV blocks; ``Replica`` plays them."""

    __slots__ = (
        "ahead", "bits", "block", "blocks", "budget", "busy_ps", "columns", "free", "fresh", "gaps", "grow", "heap", "held", "hold",
        "k", "kv", "landed", "last_decode", "lists", "loading", "log", "longest_piece", "max_seqs", "n", "n_outstanding", "n_preempted",
        "n_steps", "next_pending", "now", "open", "order", "pad", "part", "past", "pending", "policy", "r", "rank_budget", "ranks",
        "rem", "rules", "seen", "store", "swap", "tables", "times", "waiting",
    )  # fmt: skip

    def __init__(self, requests: Requests, times: StepTimes, policy: Policy, limits: Limits, store: PrefixStore | None = None) -> None:
        if store is not None and policy.padded:
            raise BadInput(f"policy={policy.name} keeps finished rows in the batch and shares no prefixes; turn the prefix cache off")
        self.store = store
        self.r, self.times, self.policy, self.swap = requests, times, policy, limits.swap
        self.budget, self.max_seqs, self.blocks, self.block = limits.budget, limits.max_seqs, limits.blocks, limits.block_tokens
        self.ranks = times.ranks
        self.rank_budget = max(self.budget // times.ranks, 1)
        self.longest_piece = self.rank_budget if policy.chunked else ANY_LENGTH
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
        self.ahead: list[int] | None = None
        self.hold = False
        # what a run unpacks at once
        r, t = requests, times
        self.columns = r.prompt, r.output, r.cached, r.ready, r.first, r.finish, r.end, r.lost
        self.tables = (t.linear, t.decode, t.decode_slope, t.prefill, t.prefill_slope, t.beside, t.beside_slope, t.idle, t.ranks)
        chosen = policy.chunked, policy.mixed, policy.refill, policy.padded, policy.reserve_output, not policy.by_priority
        self.rules = *chosen, self.budget, self.max_seqs, self.block, self.bits, (1 << self.bits) - 1, self.longest_piece
        queues = self.waiting, self.pending, self.heap, self.grow, self.order, self.loading, self.landed
        self.lists = *queues, self.gaps.ps, self.gaps.counts, self.fresh

    def submit(self, request: int) -> bool:
        """Queue a request; False (and noted as rejected) when the whole KV pool could not hold it, or no step could carry its prompt."""
        r = self.r
        last = r.prompt[request] + r.output[request] - 1
        too_long = not self.policy.chunked and r.prompt[request] + self.max_seqs > len(self.times.linear)
        if too_long or last > self.blocks * self.block:
            r.rejected.append(request)
            return False
        self.pending.append(request)
        self.n_outstanding += 1
        return True

    def let_go(self, request: int) -> None:
        """Free the KV of a request that ended with its prompt under ``hold``."""
        give_back(self, request, self.r.prompt[request])

    def stirs(self) -> int:
        """When it does something next, in ps, as far as that is known without playing it."""
        return self.now

    def bubble_ps(self) -> int:
        """Time that pipeline stages idled between their first and last work, summed."""
        return 0

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

    def _ranks_left(self, left: int, decode_tokens: int) -> int:
        """Prompt tokens of a step that leaves ``left`` in all: what the ranks that have a prompt may carry beside their decodes."""
        prompts = min(self.ranks, (self.part >= 0) + len(self.waiting) + len(self.landed))
        return min(left, prompts * (self.rank_budget + -decode_tokens // self.ranks))

    def _compute_ps(self, tokens: int, past: int) -> int:
        """Time to compute ``tokens`` of a prompt after ``past`` with nothing beside it, in chunks of the token budget."""
        t, c = self.times, min(self.longest_piece, tokens)
        full, rest = divmod(tokens, c)
        whole = t.alone_ps(c) + t.prefill[c] + t.prefill_slope[c] * past
        ps = full * whole + t.prefill_slope[c] * c * (full * (full - 1) // 2)
        return ps + (t.alone_ps(rest) + t.prefill[rest] + t.prefill_slope[rest] * (past + full * c) if rest else 0)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)
