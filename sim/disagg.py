"""Prefill and decode on separate replicas: finished prompts send their KV over links that several transfers share."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from heapq import heappop, heappush

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from .engine import NEVER, Replica
from .requests import Requests
from .router import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLink:
    """The way out of one prefill replica and into one decode replica: bytes per second each, and the delay of a small message.

    ``overlap_frac`` of a transfer happens while the prompt is still being computed (layer-wise sending); what is left goes after it.
    Raises BadInput unless the rate is positive and the fraction below 1.
    """

    bytes_per_s: float
    latency_s: float = 0.0
    overlap_frac: float = 0.0

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0 or not self.latency_s >= 0:
            raise BadInput(
                f"link of {self.bytes_per_s} bytes/s, {self.latency_s} s: the rate must be more than 0, the latency not negative"
            )
        if not 0 <= self.overlap_frac < 1:
            raise BadInput(f"overlap_frac={self.overlap_frac} must be from 0 to below 1")


class FairLinks:
    """Transfers that share links fairly: one runs at ``link / max(transfers of its sender, transfers of its receiver)``.

    A start or an end changes the rate only of transfers that share its sender or its receiver; those are settled and re-timed.
    """

    def __init__(self, n_senders: int, n_receivers: int, link: KvLink) -> None:
        self.link = link
        self._out: list[set[int]] = [set() for _ in range(n_senders)]
        self._in: list[set[int]] = [set() for _ in range(n_receivers)]
        self._flows: dict[int, _Flow] = {}
        self._ends: list[tuple[float, int, int]] = []
        self.bytes_moved = 0.0

    def start(self, transfer: int, n_bytes: float, sender: int, receiver: int, at: float) -> None:
        """Begin to send ``n_bytes``; ``at`` (seconds) must not lie before the last event."""
        self._flows[transfer] = _Flow(sender=sender, receiver=receiver, left=n_bytes, since=at)
        self._out[sender].add(transfer)
        self._in[receiver].add(transfer)
        self.bytes_moved += n_bytes
        self._share(sender, receiver, at)

    def next_end(self) -> tuple[float, int]:
        """(time, transfer) of the one that ends first at the present rates; (inf, -1) when none runs. Ties go to the lowest id."""
        while self._ends:
            at, transfer, version = self._ends[0]
            flow = self._flows.get(transfer)
            if flow is not None and flow.version == version:
                return at, transfer
            heappop(self._ends)
        return float("inf"), -1

    def end(self, transfer: int, at: float) -> int:
        """Take a finished transfer off its links; returns its receiver."""
        flow = self._flows.pop(transfer)
        self._out[flow.sender].discard(transfer)
        self._in[flow.receiver].discard(transfer)
        self._share(flow.sender, flow.receiver, at)
        return flow.receiver

    def _share(self, sender: int, receiver: int, at: float) -> None:
        for transfer in sorted(self._out[sender] | self._in[receiver]):
            flow = self._flows[transfer]
            flow.left = max(flow.left - (at - flow.since) * flow.rate, 0.0)
            flow.since = at
            flow.rate = self.link.bytes_per_s / max(len(self._out[flow.sender]), len(self._in[flow.receiver]))
            flow.version += 1
            heappush(self._ends, (at + flow.left / flow.rate, transfer, flow.version))


@dataclass(slots=True)
class _Flow:
    """One transfer: bytes left at time ``since``, its present rate, and how often it was re-timed."""

    sender: int
    receiver: int
    left: float
    since: float
    rate: float = 0.0
    version: int = 0


def run_disaggregated(
    requests: Requests, prefill: list[Replica], decode: list[Replica], link: KvLink, kv_bytes_per_token: float
) -> FairLinks:
    """Play all requests through prefill replicas (in turn), the links, and the decode replica with fewest requests.

    A prefill replica computes the prompt and the first token; its KV then moves, and the decode replica takes over with all but the
    last token cached. Prefill replicas never wait for decode, so they are played first; transfers and decode steps follow in order of
    time. Returns the links with what they carried. Raises BadInput when either pool is empty.
    """
    if not prefill or not decode:
        raise BadInput(f"disaggregation needs prefill and decode replicas; got {len(prefill)} and {len(decode)}")
    answers = requests.output[:]
    requests.output[:] = array("q", (1,)) * len(answers)
    for q in range(len(requests)):
        prefill[q % len(prefill)].submit(q)
    for replica in prefill:
        replica.run(NEVER)
    done = sorted((requests.finish[q], q) for q in range(len(requests)) if requests.finish[q] >= 0 and answers[q] > 1)
    links, pool, coming = FairLinks(len(prefill), len(decode), link), Pool(decode), [0] * len(decode)
    sent, everyone = 0, range(len(decode))
    while sent < len(done) or any(coming):
        at, transfer = links.next_end()
        if sent < len(done) and done[sent][0] / PS <= at:
            ready, q = done[sent]
            sent += 1
            pool.advance(ready)
            target = min(everyone, key=lambda i: decode[i].n_outstanding + coming[i])
            coming[target] += 1
            links.start(q, requests.prompt[q] * kv_bytes_per_token * (1 - link.overlap_frac), q % len(prefill), target, ready / PS)
        else:
            target = links.end(transfer, at)
            coming[target] -= 1
            arrives = round((at + link.latency_s) * PS)
            _hand_over(requests, transfer, answers[transfer], arrives)
            pool.submit(transfer, target, arrives)
    for replica in decode:
        replica.run(NEVER)
    return links


def _hand_over(requests: Requests, q: int, answer: int, at: int) -> None:
    """The request as its decode replica sees it: the first token is known, all KV but its own is there."""
    requests.finish[q] = -1
    requests.cached[q] = requests.prompt[q]
    requests.prompt[q] += 1
    requests.output[q] = answer - 1
    requests.lost[q] = requests.first[q]
    requests.ready[q] = at
