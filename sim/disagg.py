"""Prefill and decode on separate replicas: KV moves over shared links once a decode replica has room for it."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from .fleet import Fleet
from .placement import Placement
from .requests import Requests
from .router import Router


@dataclass(slots=True)
class _Move:
    """The KV of one request on its way: from and to which replicas, bytes of it not sent yet, pieces on the links."""

    sender: int
    receiver: int
    n_bytes: float
    pieces: int = 0
    blocks: int = 0


class Disaggregated:
    """Prefill replicas ``0 … n_prefill − 1`` and decode replicas after them, in one fleet.

    A prefill replica computes the prompt and the first token and keeps the KV. The first in the queue moves as soon as a decode replica
    has free blocks for it and a seat (of those the one with fewest requests, those on their way counted): its blocks are reserved, the
    bytes cross the links, the prefill replica's KV is let go, and ``latency`` later the request decodes with all but its last token cached.
    Without room anywhere KV waits on the prefill side, fills its pool and in the end stops it. ``overlap_frac`` of the bytes is sent
    while the prompt's last step runs, if there is room by then. A request that could never decode is rejected at the door.
    Raises BadInput when either pool is empty, or ``overlap_frac`` is not from 0 to below 1.
    """

    def __init__(
        self,
        fleet: Fleet,
        n_prefill: int,
        router: Router,
        placement: Placement,
        kv_bytes_per_token: float,
        *,
        overlap_frac: float = 0.0,
    ) -> None:
        if not 0 < n_prefill < len(fleet.replicas):
            raise BadInput(f"disaggregation needs prefill and decode replicas; got {n_prefill} and {len(fleet.replicas) - n_prefill}")
        if not 0 <= overlap_frac < 1:
            raise BadInput(f"overlap_frac={overlap_frac} must be from 0 to below 1")
        self.fleet, self.n_prefill, self.router, self.placement = fleet, n_prefill, router, placement
        self.kv_bytes_per_token, self.overlap_frac, self.watches = kv_bytes_per_token, overlap_frac, True
        self.answered: Callable[[int], None] | None = None
        self.answers = hide_answers(fleet.requests)
        self.prefill, self.decode = range(n_prefill), range(n_prefill, len(fleet.replicas))
        for i in self.prefill:
            fleet.replicas[i].hold = True
        self.coming = [0] * len(fleet.replicas)
        self.queue: deque[tuple[int, int]] = deque()
        self.moves: dict[int, _Move] = {}
        self._wake_at = -1

    def dispatch(self, q: int) -> bool:
        """A request that is ready goes to a prefill replica; False when it can never be served."""
        requests, last = self.fleet.requests, self.fleet.replicas[-1]
        if -(-(requests.prompt[q] + self.answers[q] - 1) // last.block) > last.blocks:
            requests.rejected.append(q)
            return False
        return self.fleet.submit(q, self.router.pick(q, self.prefill))

    def finished(self, i: int, q: int, at: int, step_ps: int) -> None:
        """Send on what ends on a prefill replica; what ends on a decode replica is answered and leaves room for more."""
        if i >= self.n_prefill:
            if self.answered is not None:
                self.answered(at)
            if self.queue:
                self.fleet.at(at, self._send_waiting)
        elif self.answers[q] == 1:
            self.fleet.at(at, self._let_go, i, q)
            if self.answered is not None:
                self.answered(at)
        else:
            if self.overlap_frac:
                self.fleet.at(at - step_ps, self._send_early, q, i)
            self.fleet.at(at, self._prefilled, q, i)

    def _prefilled(self, q: int, i: int) -> None:
        if q in self.moves:
            move = self.moves[q]
            self._send(q, move, move.n_bytes)
        else:
            self.queue.append((q, i))
            self._send_waiting()

    def _send_early(self, q: int, i: int) -> None:
        """Layer-wise sending: part of the KV goes while the prompt's last step is under way, if a decode replica can take it."""
        if self.queue:
            return
        move = self._admit(q, i)
        if move is not None:
            self._send(q, move, move.n_bytes * self.overlap_frac)

    def _send_waiting(self) -> None:
        while self.queue:
            q, i = self.queue[0]
            move = self._admit(q, i)
            if move is None:
                return
            self.queue.popleft()
            self._send(q, move, move.n_bytes)

    def _admit(self, q: int, i: int) -> _Move | None:
        """Reserve room on the decode replica with fewest requests among those that have it."""
        replicas, coming = self.fleet.replicas, self.coming
        requests = self.fleet.requests
        best, fewest, need = -1, 0, 0
        for d in self.decode:
            replica = replicas[d]
            load = replica.n_outstanding + coming[d]
            if (best < 0 or load < fewest) and load < replica.max_seqs:
                tokens = requests.prompt[q] + (self.answers[q] - 1 if replica.policy.reserve_output else 1)
                blocks = -(-tokens // replica.block)
                if blocks <= replica.free:
                    best, fewest, need = d, load, blocks
        if best < 0:
            return None
        replicas[best].free -= need
        coming[best] += 1
        move = _Move(sender=i, receiver=best, n_bytes=requests.prompt[q] * self.kv_bytes_per_token, blocks=need)
        self.moves[q] = move
        return move

    def _send(self, q: int, move: _Move, n_bytes: float) -> None:
        """Put part of a request's KV on the links; transfer ids are 2q and 2q + 1."""
        path, ceiling, _ = self.placement.route(move.sender, move.receiver)
        move.n_bytes -= n_bytes
        self.placement.links.start(2 * q + (move.n_bytes > 0), n_bytes, path, self.fleet.now / PS, ceiling)
        move.pieces += 1
        self._watch_links()

    def _watch_links(self) -> None:
        end_s, _ = self.placement.links.next_end()
        if end_s < float("inf"):
            at = max(round(end_s * PS), self.fleet.now)
            if self._wake_at < self.fleet.now or at < self._wake_at:
                self._wake_at = at
                self.fleet.at(at, self._links_end)

    def _links_end(self) -> None:
        links, now = self.placement.links, self.fleet.now
        end_s, transfer = links.next_end()
        while transfer >= 0 and round(end_s * PS) <= now:
            links.end(transfer, end_s)
            q = transfer // 2
            move = self.moves[q]
            move.pieces -= 1
            if not move.pieces and move.n_bytes <= 0:
                self._let_go(move.sender, q)
                latency_s = self.placement.route(move.sender, move.receiver)[2]
                self.fleet.at(now + round(latency_s * PS), self._arrive, q)
            end_s, transfer = links.next_end()
        self._wake_at = -1
        self._watch_links()

    def _let_go(self, i: int, q: int) -> None:
        self.fleet.replicas[i].let_go(q)
        self.fleet.wake(i)

    def _arrive(self, q: int) -> None:
        move = self.moves.pop(q)
        replica = self.fleet.replicas[move.receiver]
        replica.free += move.blocks
        self.coming[move.receiver] -= 1
        hand_over(self.fleet.requests, q, self.answers[q], self.fleet.now)
        if not self.fleet.submit(q, move.receiver) and self.answered is not None:
            self.answered(self.fleet.now)


def hide_answers(requests: Requests) -> array[int]:
    """Every request ends with its first token; returns the answers' true lengths."""
    answers = requests.output[:]
    requests.output[:] = array("q", (1,)) * len(answers)
    return answers


def hand_over(requests: Requests, q: int, answer: int, at: int) -> None:
    """The request as it is decoded after its prompt was computed elsewhere: the first token is known, all KV but its own is there."""
    requests.finish[q] = -1
    requests.cached[q] = requests.prompt[q]
    requests.prompt[q] += 1
    requests.output[q] = answer - 1
    requests.lost[q] = requests.first[q]
    requests.ready[q] = at
