"""Prefill and decode on separate replicas: KV moves over shared links once a decode replica has room for it."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from .clock import NEVER
from .engine import Replica
from .fleet import Fleet, most_growth
from .placement import Placement
from .requests import Requests
from .router import STATELESS, Router


@dataclass(slots=True)
class _Move:
    """The KV of one request on its way: from and to which replicas, bytes of it not sent yet, pieces on the links, latency behind them."""

    sender: int
    receiver: int
    n_bytes: float
    pieces: int = 0
    latency_ps: int = 0


class Disaggregated:
    """Prefill replicas ``0 … n_prefill − 1`` and decode replicas after them, in one fleet.

    A prefill replica computes the prompt and the first token and keeps the KV. The first in the queue moves as soon as a decode replica
    has free blocks for it and a seat (of those the one with fewest requests, those on their way counted): its blocks are reserved, the
    bytes cross the links, the prefill replica's KV is let go, and ``latency`` later the request decodes with all but its last token cached.
    Without room anywhere KV waits on the prefill side, fills its pool and in the end stops it. ``overlap_frac`` of the bytes is sent
    while the prompt's last step runs, if there is room by then. Where ``decode_answers`` is set the client hears nothing before the decode
    replica's first token. With ``decode_first`` room for the KV is reserved first, by a decode replica that looks for requests every
    ``poll_steps`` steps; only then does the prompt go to a prefill replica, and its KV moves as soon as it is computed.
    A request that could never decode is rejected at the door.
    With ``decode_in_turn`` every request has its decode replica in turn, whoever has room, and waits for that one.
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
        state_bytes: float = 0.0,
        overlap_frac: float = 0.0,
        decode_answers: bool = False,
        decode_first: bool = False,
        poll_steps: int = 1,
        decode_in_turn: bool = False,
    ) -> None:
        if not 0 < n_prefill < len(fleet.replicas):
            raise BadInput(f"disaggregation needs prefill and decode replicas; got {n_prefill} and {len(fleet.replicas) - n_prefill}")
        if not 0 <= overlap_frac < 1:
            raise BadInput(f"overlap_frac={overlap_frac} must be from 0 to below 1")
        self.fleet, self.n_prefill, self.router = fleet, n_prefill, router
        self.placement, self.links = placement, placement.links
        self.kv_bytes_per_token, self.state_bytes, self.overlap_frac = kv_bytes_per_token, state_bytes, overlap_frac
        self.decode_answers, self.decode_first, self.poll_steps = decode_answers, decode_first, poll_steps
        self.needs_state = decode_first or router.name not in STATELESS
        self.answered: Callable[[int], None] | None = None
        self.answers = hide_answers(fleet.requests)
        self.prefill, self.decode = range(n_prefill), range(n_prefill, len(fleet.replicas))
        for i in self.prefill:
            fleet.replicas[i].hold = True
        self.most_tokens = fleet.replicas[-1].blocks * fleet.replicas[-1].block
        self.lines: list[deque[tuple[int, int]]] = [deque() for _ in (self.decode if decode_in_turn else range(1))]
        self._turn = self._n_waiting = 0
        self.moves: dict[int, _Move] = {}
        self._wake_at = NEVER
        self._short = False

    def listen(self) -> None:
        """Hear of what the prefill replicas finish, and the decode replicas too if somebody waits for answers."""
        self.fleet.hear(self.finished)
        self.fleet.watch(self.prefill if self.answered is None else range(len(self.fleet.replicas)))
        if self.answered is None and not self.needs_state:
            self.fleet.foresee(self.prefill)

    def dispatch(self, q: int) -> bool:
        """A request that is ready goes to a prefill replica; False when it can never be served."""
        requests = self.fleet.requests
        if requests.prompt[q] + self.answers[q] - 1 > self.most_tokens:
            requests.rejected.append(q)
            return False
        if self.decode_first:
            self._stand_in_line(q, -1)
            return True
        return self.fleet.submit(q, self.router.pick(q, self.prefill))

    def _invite(self, q: int, move: _Move) -> None:
        """The decode replica with room for a request hears of it when it next polls, and lets its prompt be computed."""
        self.fleet.catch_up(move.receiver)
        at = next_poll(self.fleet.replicas[move.receiver], self.fleet.now, self.poll_steps)
        self.fleet.at(at, self._compute, q, move)

    def _compute(self, q: int, move: _Move) -> None:
        """The prompt goes to a prefill replica; one that no replica can hold leaves its room on the decode side."""
        self.fleet.requests.ready[q] = self.fleet.now
        move.sender = self.router.pick(q, self.prefill)
        if not self.fleet.submit(q, move.sender):
            del self.moves[q]
            replica = self.fleet.replicas[move.receiver]
            replica.free += self._room(q, replica)
            self.fleet.load[move.receiver] -= 1
            self.fleet.wake(move.receiver)
            if self.answered is not None:
                self.answered(self.fleet.now)
            self._send_waiting()

    def _room(self, q: int, replica: Replica) -> int:
        """KV blocks that a decode replica sets aside for a request."""
        tokens = self.fleet.requests.prompt[q] + (self.answers[q] - 1 if replica.policy.reserve_output else 1)
        return -(-tokens // replica.block)

    def finished(self, i: int, q: int, at: int, step_ps: int) -> None:
        """Send on what ends on a prefill replica; what ends on a decode replica is answered and leaves room for more."""
        if i >= self.n_prefill:
            if self.answered is not None:
                self.answered(at)
            if self._n_waiting:
                self.fleet.at(at, self._send_waiting)
        elif self.answers[q] == 1:
            self.fleet.at(at, self.fleet.let_go, i, q)
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
            self._stand_in_line(q, i)

    def _send_early(self, q: int, i: int) -> None:
        """Layer-wise sending: part of the KV goes while the prompt's last step is under way, if a decode replica can take it."""
        if self._n_waiting:
            return
        move = self._admit(q, i, self.decode)
        if move is not None:
            self._send(q, move, move.n_bytes * self.overlap_frac)

    def _stand_in_line(self, q: int, i: int) -> None:
        """A request waits for the decode replica whose turn it is, or for any; it goes at once if nobody waits and there is room."""
        at, self._turn = self._turn % len(self.lines), self._turn + 1
        if self._n_waiting or not self._go(q, i, at):
            self.lines[at].append((q, i))
            self._n_waiting += 1
            self._send_waiting()

    def _go(self, q: int, i: int, at: int) -> bool:
        """Room for a request of line ``at`` is reserved and its KV goes there, or its prompt is computed first; False without room."""
        move = self._admit(q, i, self.decode if len(self.lines) == 1 else range(self.n_prefill + at, self.n_prefill + at + 1))
        if move is None:
            return False
        if self.decode_first:
            self._invite(q, move)
        else:
            self._send(q, move, move.n_bytes)
        return True

    def _send_waiting(self) -> None:
        for at, line in enumerate(self.lines):
            while line and self._go(*line[0], at):
                line.popleft()
                self._n_waiting -= 1
        self._watch_decode(self._n_waiting > 0)

    def _watch_decode(self, on: bool) -> None:
        """While KV waits for room, every finish on a decode replica may make it."""
        if self.answered is None and on != self._short:
            self._short = on
            self.fleet.watch(self.decode, on)

    def _admit(self, q: int, i: int, allowed: range) -> _Move | None:
        """Reserve room on the decode replica with fewest requests among those of ``allowed`` that have it."""
        fleet, requests = self.fleet, self.fleet.requests
        fleet.catch_up()
        loads = fleet.load[allowed.start : allowed.stop]
        for _ in allowed:
            load = min(loads)
            at = loads.index(load)
            d = allowed[at]
            replica = fleet.replicas[d]
            need = self._room(q, replica)
            if load < replica.max_seqs and need <= replica.free:
                tight = need + most_growth(replica) > replica.free
                if tight:
                    fleet.catch_up(d)
                if need <= replica.free:
                    replica.free -= need
                    if tight:
                        fleet.wake(d)  # with less room, less can be said about what it will do
                    fleet.load[d] += 1
                    n_bytes = requests.prompt[q] * self.kv_bytes_per_token + self.state_bytes
                    self.moves[q] = _Move(i, d, n_bytes)
                    return self.moves[q]
            loads[at] = NEVER
        return None

    def _send(self, q: int, move: _Move, n_bytes: float) -> None:
        """Put part of a request's KV on the links; transfer ids are 2q and 2q + 1."""
        path, ceiling, latency_s = self.placement.route(move.sender, move.receiver)
        move.n_bytes -= n_bytes
        move.latency_ps = round(latency_s * PS)
        self.links.start(2 * q + (move.n_bytes > 0), n_bytes, path, self.fleet.now / PS, ceiling)
        move.pieces += 1
        self._watch_links()

    def _watch_links(self) -> None:
        end_s, transfer = self.links.next_end()
        if transfer >= 0:
            at = max(round(end_s * PS), self.fleet.now)
            if at < self._wake_at:
                self._wake_at = at
                self.fleet.at(at, self._links_end, at)

    def _links_end(self, at: int) -> None:
        if at != self._wake_at:
            return  # the links were looked at since
        self._wake_at = NEVER
        links = self.links
        end_s, transfer = links.next_end()
        while transfer >= 0:
            ends = round(end_s * PS)
            if ends > at:
                self._wake_at = ends
                self.fleet.at(ends, self._links_end, ends)
                return
            links.end(transfer, end_s)
            move = self.moves[transfer // 2]
            move.pieces -= 1
            if not move.pieces and move.n_bytes <= 0:
                self._moved(transfer // 2)
            end_s, transfer = links.next_end()

    def _moved(self, q: int) -> None:
        """All of a request's KV has left: its prefill replica lets go, and it decodes once the last byte is there."""
        move = self.moves.pop(q)
        fleet, receiver = self.fleet, move.receiver
        fleet.let_go(move.sender, q)
        arrives = fleet.now + move.latency_ps
        hand_over(fleet.requests, q, self.answers[q], arrives)
        if self.decode_answers:
            fleet.requests.first[q] = -1
        fleet.replicas[receiver].take_over(q, arrives)
        fleet.wake(receiver)


def next_poll(replica: Replica, at: int, poll_steps: int) -> int:
    """When a replica that decodes next looks for requests, from ``at`` (ps) on: before every step whose number is a multiple."""
    step = replica.times.step_ps(replica.n, replica.kv + replica.n, []) if replica.n else 0
    if not step:
        return at
    steps = max(0, -(-(at - replica.now) // step))
    return max(at, replica.now + (steps + (-(replica.k + steps)) % poll_steps) * step)


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
