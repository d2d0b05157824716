"""Preemption: which running request gives its KV blocks back when the decodes have no room to grow, and what that leaves behind."""

from __future__ import annotations

from heapq import heapify
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .replica_state import ReplicaState


def preempt(replica: ReplicaState) -> int:
    """Preempt from the newest (or least urgent) until every decode left has room for its next token; returns ps of KV copied out."""
    copied_ps = 0
    while replica.grow[(replica.k + 1) % replica.block] > replica.free:
        victim = _victim(replica)
        if victim == replica.part:
            replica.part = -1
            give_back(replica, victim, replica.r.prompt[victim])
        else:
            copied_ps += _stop(replica, victim)
        replica.waiting.appendleft(victim)
        replica.n_preempted += 1
        if replica.log is not None:
            replica.log.preempt(replica.now, victim)
    return copied_ps


def _victim(replica: ReplicaState) -> int:
    if replica.policy.by_priority:
        mask = (1 << replica.bits) - 1
        running = [entry & mask for entry in replica.heap] + ([replica.part] if replica.part >= 0 else [])
        return max(running, key=lambda q: (replica.r.priority[q], q))
    if replica.part >= 0:
        return replica.part
    order, end = replica.order, replica.r.end
    while end[order[-1]] <= replica.k:
        order.pop()
    return order.pop()


def _stop(replica: ReplicaState, q: int) -> int:
    """Take a decoding request out: its answer so far becomes prompt; under swap its KV goes to the host and comes back later."""
    r, k, last = replica.r, replica.k, replica.r.end[q]
    replica.heap.remove(last << replica.bits | q)
    heapify(replica.heap)
    replica.grow[(last - r.output[q] + 2 - r.prompt[q]) % replica.block] -= 1
    done = r.output[q] - (last - k)
    if done == 1 and replica.fresh:
        replica.fresh.pop()
    r.prompt[q] += done
    r.output[q] -= done
    r.end[q] = -1
    length = r.prompt[q] - 1
    replica.n -= 1
    replica.kv -= length
    give_back(replica, q, length)
    r.lost[q] = replica.now
    if not replica.swap:
        return 0
    copy_ps = -(-length // replica.block) * replica.times.swap
    r.cached[q], r.swapped[q] = length, copy_ps
    return copy_ps


def give_back(replica: ReplicaState, q: int, tokens: int) -> None:
    """Return a preempted request's blocks, but for those of its prefix that others hold."""
    shared = replica.store.release(q, replica.free) if replica.store is not None else 0
    replica.free += -(-tokens // replica.block) - shared
