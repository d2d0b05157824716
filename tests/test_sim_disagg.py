"""Disaggregated serving: one request by hand, the plain simulator bit for bit, nothing lost, KV that finds no room holds prefill back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pd import PlainPd
from roofplan.costmodels.serving_ops import serve_system
from roofplan.costmodels.step_times import PS
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import serving_engine
from roofplan.sim.disagg import Disaggregated
from roofplan.sim.engine import Replica
from roofplan.sim.fleet import Fleet
from roofplan.sim.placement import Placement
from roofplan.sim.policies import POLICIES
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.router import Router
from roofplan.sim.sources import play
from test_sim_engine import toy_times, workload

LIMITS = Limits(budget=64, max_seqs=8, blocks=60, block_tokens=16)
SYSTEM = serve_system(registry.cluster("h100-sxm", 16), serving_engine("vllm"))


def placement(n: int, m: int, rate: float = 1e9, latency_s: float = 1e-6, nic_per_gpu: bool = True) -> Placement:
    """``n`` prefill and ``m`` decode replicas of 8 GPUs, the decode ones in other nodes; ``rate`` is a replica's way out."""
    link = dataclasses.replace(SYSTEM.network.inter, bytes_per_s=rate / 8 if nic_per_gpu else rate, latency_s=latency_s)
    network = dataclasses.replace(SYSTEM.network, inter=link)
    return Placement(network, [8] * (n + m), [8] * (n + m), nic_per_gpu)


def replicas(requests: Requests, n: int, limits: Limits = LIMITS) -> list[Replica]:
    return [Replica(requests, toy_times(), POLICIES["vllm-v1"], limits) for _ in range(n)]


def run(work, n=1, m=1, *, router="round-robin", place=None, kv_bytes=1000.0, state=0.0, overlap=0.0, limits=LIMITS, small=LIMITS):
    requests = Requests(work)
    fleet = Fleet(requests, replicas(requests, n, limits) + replicas(requests, m, small))
    place = place or placement(n, m)
    front = Router(router, [[r] for r in fleet.replicas[:n]], work, 0)
    play(fleet, Disaggregated(fleet, n, front, place, kv_bytes, state_bytes=state, overlap_frac=overlap), None, 0, 0)
    return requests, fleet, place


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25])
def test_one_request_is_prefill_then_transfer_then_decode(overlap):
    """Its KV of 40 kB takes 40 us at 1 GB/s, what goes during the prompt's 7.8 us does not show (a tenth fits); then 1 us of latency."""
    requests, _, _ = run(workload([(0, 40, 5, 0)]), overlap=overlap)
    t = toy_times()
    prefill = t.step_ps(0, 0, [(40, 0)])
    sent_us = max(prefill / 1e6 + 40 * (1 - overlap), 40)
    arrives = round((sent_us + 1) * 1e6) if overlap else prefill + 41_000_000
    expected = arrives + t.step_ps(0, 0, [(1, 40)]) + sum(t.step_ps(1, 41 + j, []) for j in (1, 2, 3))
    assert requests.first[0] == prefill
    assert abs(requests.finish[0] - expected) <= 2  # link times are floats


def test_recurrent_states_move_with_the_kv():
    """25 kB of them take 25 us more at 1 GB/s, whatever the prompt."""
    plain, hybrid = (run(workload([(0, 40, 5, 0)]), state=state)[0] for state in (0.0, 25_000.0))
    assert hybrid.finish[0] - plain.finish[0] == pytest.approx(25_000_000, abs=2)


def test_where_the_decode_replica_answers_the_first_token_comes_after_the_kv():
    """Nothing else changes: the answer ends when it would, and its first token is the one of the decode replica's first step."""
    found = []
    for late in (False, True):
        requests = Requests(workload([(0, 40, 5, 0)]))
        fleet = Fleet(requests, replicas(requests, 1) + replicas(requests, 1))
        front = Router("round-robin", [[fleet.replicas[0]]], workload([(0, 40, 5, 0)]), 0)
        play(fleet, Disaggregated(fleet, 1, front, placement(1, 1), 1000.0, decode_answers=late), None, 0, 0)
        found.append((requests.first[0], requests.finish[0]))
    (early, end), (late_first, same_end) = found
    t = toy_times()
    assert end == same_end
    assert late_first == same_end - sum(t.step_ps(1, 41 + j, []) for j in (1, 2, 3))
    assert late_first - early == pytest.approx(41_000_000 + t.step_ps(0, 0, [(1, 40)]), abs=2)


ROWS = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 90), st.integers(1, 40), st.just(0)), min_size=1, max_size=25)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(rows=ROWS, n=st.integers(1, 3), m=st.integers(1, 3), blocks=st.sampled_from([9, 14, 60]), seats=st.sampled_from([2, 8]),
       overlap=st.sampled_from([0.0, 0.6]), rate=st.sampled_from([1e9, 5e7]), nic=st.booleans())  # fmt: skip
def test_equals_the_plain_simulator_bit_for_bit(rows, n, m, blocks, seats, overlap, rate, nic):
    small = Limits(budget=64, max_seqs=seats, blocks=blocks, block_tokens=16)
    work = workload(rows)
    fast, fleet, _ = run(work, n, m, place=placement(n, m, rate, nic_per_gpu=nic), overlap=overlap, limits=small, small=small)
    slow = Requests(work)
    ahead, after = replicas(slow, n, small), replicas(slow, m, small)
    PlainPd(slow, ahead, after, placement(n, m, rate, nic_per_gpu=nic), 1000.0, overlap).run()
    assert list(fast.first) == list(slow.first)
    assert list(fast.finish) == list(slow.finish)
    assert fast.rejected == slow.rejected
    assert [r.n_steps for r in fleet.replicas] == [r.n_steps for r in ahead + after]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=ROWS, n=st.integers(1, 3), m=st.integers(1, 3),
       router=st.sampled_from(["random", "least-outstanding", "power-of-two", "kv-aware"]))  # fmt: skip
def test_every_token_is_made_once_and_every_block_returns(rows, n, m, router):
    requests, fleet, place = run(workload(rows), n, m, router=router, place=placement(n, m, 1e8), kv_bytes=100.0)
    assert min(requests.finish) > 0
    for replica in fleet.replicas:
        replica.gaps.fold()
        assert (replica.free, replica.n_outstanding) == (LIMITS.blocks, 0)
    assert sum(r.gaps.n_tokens for r in fleet.replicas[n:]) == sum(o - 1 for _, _, o, _ in rows)
    moved = sum(100.0 * p for _, p, o, _ in rows if o > 1)
    sent = sum(c for name, c in zip(place.links.names, place.links.carried, strict=True) if name.endswith(">"))
    assert sent == pytest.approx(moved)
    assert all(f >= a for a, f in zip(requests.first, requests.finish, strict=True))


def test_kv_without_room_holds_prefill_back():
    """Decode holds one request at a time, prefill keeps the KV of the next ones: with a pool of two prompts the fourth must wait."""
    rows = [(0, 40, 200, 0)] * 6
    one = Limits(budget=64, max_seqs=1, blocks=60, block_tokens=16)
    two = Limits(budget=64, max_seqs=8, blocks=6, block_tokens=16)
    roomy, _, _ = run(workload(rows), limits=LIMITS, small=one)
    tight, _, _ = run(workload(rows), limits=two, small=one)
    assert max(roomy.first) < roomy.finish[0]  # all prompts done while the first still decodes
    assert tight.first[3] > tight.finish[0]  # 0 decodes, 1 and 2 fill the pool, 3 waits until 1 has left
    assert all(later > sooner for sooner, later in zip(tight.finish, tight.finish[1:], strict=False))


def test_a_request_larger_than_the_decode_pool_is_rejected_at_the_door():
    small = Limits(budget=64, max_seqs=8, blocks=6, block_tokens=16)
    requests, fleet, _ = run(workload([(0, 50, 60, 0), (0, 5, 5, 0)]), small=small)
    assert requests.rejected == [0]
    assert (requests.first[0], requests.finish[0]) == (-1, -1)
    assert fleet.replicas[0].n_steps == 1


def test_a_slow_shared_adapter_delays_answers():
    """Two prefill replicas of one node with one adapter take turns in effect: KV of both arrives when one adapter has moved both."""
    rows = [(0, 80, 3, 0), (0, 80, 3, 0)]
    network = dataclasses.replace(SYSTEM.network, inter=dataclasses.replace(SYSTEM.network.inter, bytes_per_s=1e6, latency_s=0.0))

    def ends(nic_per_gpu):
        place = Placement(network, [4, 4, 8, 8], [4, 4, 8, 8], nic_per_gpu)
        return list(run(workload(rows), 2, 2, place=place)[0].finish)

    own, shared = ends(True), ends(False)
    assert max(shared) / PS == pytest.approx(2 * 80 * 1000 / 1e6, rel=0.01)
    assert max(own) / PS == pytest.approx(80 * 1000 / 4e6, rel=0.05)


def test_pools_and_fractions_that_cannot_be_are_refused():
    work = workload([(0, 4, 4, 0)])
    with pytest.raises(BadInput, match="got 1 and 0"):
        run(work, 1, 0)
    with pytest.raises(BadInput, match="overlap_frac=1 must be from 0 to below 1"):
        run(work, overlap=1)
