"""Preemption in a replica that plays every step: the rules of ``preempt`` over a batch of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .preempt import give_back

if TYPE_CHECKING:
    from .stepping import SteppingReplica


def preempt_from(replica: SteppingReplica) -> int:
    """Preempt from the newest (or least urgent) until every decode left has room for its next token; returns ps of KV copied out."""
    copied_ps = 0
    while replica.batch.growth(1) > replica.free:
        victim = _victim(replica)
        if victim in replica.batch.slot:
            copied_ps += _stop(replica, victim)
        else:
            replica.part = -1
            replica.wave = [member for member in replica.wave if member[0] != victim]
            give_back(replica, victim, replica.r.prompt[victim])
        replica.waiting.appendleft(victim)
        replica.n_preempted += 1
        if replica.log is not None:
            replica.log.preempt(replica.now, victim)
    return copied_ps


def released(replica: SteppingReplica, q: int) -> int:
    """Blocks of a leaving request's prefix that others still hold."""
    return replica.store.release(q, replica.free) if replica.store is not None else 0


def _victim(replica: SteppingReplica) -> int:
    started = [q for q, _, _ in replica.wave] + ([replica.part] if replica.part >= 0 else [])
    if replica.policy.by_priority:
        return max([*replica.batch.slot, *started], key=lambda q: (replica.r.priority[q], q))
    return started[-1] if started else next(reversed(replica.batch.slot))


def _stop(replica: SteppingReplica, q: int) -> int:
    """A decoding request goes back to the queue, its answer so far part of its prompt; returns ps to copy its KV out under swap."""
    r = replica.r
    length, blocks = replica.batch.leave(q, back=True)
    done = length - r.prompt[q] + 1
    last = replica.fresh.pop() if done == 1 and replica.fresh else replica.last_left()
    r.prompt[q] += done
    r.output[q] -= done
    replica.free += blocks - released(replica, q)
    r.lost[q] = last
    if not replica.swap:
        return 0
    copy_ps = -(-length // replica.block) * replica.swap_ps
    r.cached[q], r.swapped[q] = length, copy_ps
    return copy_ps
