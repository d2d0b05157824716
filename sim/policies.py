"""Scheduling policies as data: which requests a serving step may carry, and in what order requests wait."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..scenarios.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One scheduling discipline.

    ``chunked``: a prompt may be cut to fill the token budget. ``mixed``: prefill and decode share a step (else prefill runs first,
    alone). ``refill``: requests join a running batch (else only once it has drained). ``padded``: a finished sequence keeps its row
    until the batch ends. ``reserve_output``: KV for the whole answer is set aside at admission. ``by_priority``: the waiting are
    ordered by (priority, arrival) and the lowest priority is preempted first. ``layer_tokens`` > 0: whole prompts pass through one group
    of layers a step, a group for each so many of their tokens, while the other layers run decodes alone. ``radix``: cached prefixes form a
    tree whose least recently used leaf goes first.
    """

    name: str
    chunked: bool = True
    mixed: bool = True
    refill: bool = True
    padded: bool = False
    reserve_output: bool = False
    by_priority: bool = False
    layer_tokens: int = 0
    radix: bool = False


POLICIES = {
    policy.name: policy
    for policy in (
        Policy(name="vllm-v1"),  # decodes first, the rest of the budget to prompts, FCFS
        Policy(name="priority", by_priority=True),
        Policy(name="sarathi"),
        Policy(name="splitfuse", reserve_output=True),
        Policy(name="orca", chunked=False, reserve_output=True),
        Policy(name="vllm-v0", chunked=False, mixed=False),
        Policy(name="sglang", mixed=False, radix=True),
        Policy(name="sglang-mixed", chunked=False, radix=True),
        Policy(name="decode-first", chunked=False, mixed=False, refill=False),
        Policy(name="layered", chunked=False, layer_tokens=512),
        Policy(name="static", chunked=False, mixed=False, refill=False, padded=True, reserve_output=True),
    )
}
"""Sources: static and Orca: Yu et al., OSDI 2022. Sarathi: Agrawal et al., arXiv 2308.16369 and 2403.02310. Dynamic SplitFuse: Holmes et
al., arXiv 2401.08671 (KV for the answer is secured before a prompt starts). vLLM v0 and v1: its scheduler's documented order. Layered:
Layered Prefill (2025), a group of layers for every 512 tokens."""


def policy_named(name: str) -> Policy:
    """The policy of this name; BadInput lists the legal ones."""
    if name not in POLICIES:
        raise BadInput(f"policy={name!r} is not known; legal: {', '.join(POLICIES)}")
    return POLICIES[name]


class PriorityQueue:
    """Waiting requests in order of (priority, id); stands where FCFS has a deque. Ids count up with arrival."""

    def __init__(self, priority: Sequence[int]) -> None:
        self._priority = priority
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __getitem__(self, at: int) -> int:
        return self._heap[at][1]

    def __iter__(self) -> Iterator[int]:
        return (request for _, request in self._heap)

    def append(self, request: int) -> None:
        heapq.heappush(self._heap, (self._priority[request], request))

    appendleft = append

    def popleft(self) -> int:
        return heapq.heappop(self._heap)[1]


Waiting = deque[int] | PriorityQueue
