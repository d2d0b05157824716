"""KV tiers: one by hand, the fast engine against the naive one, and what shared tiers share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import NaiveEngine, Seq
from naive_store import NaiveLru, NaiveRadix, NaiveTier
from roofplan.costmodels.step_times import PS
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.scenarios.serving_parts import KvTier
from roofplan.sim.engine import Replica
from roofplan.sim.kvstore import PrefixCache, PromptBlocks
from roofplan.sim.policies import POLICIES, policy_named
from roofplan.sim.radix import RadixCache
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.stepping import SteppingReplica
from roofplan.sim.stores import prefix_stores, tier_use
from roofplan.sim.tiers import Tier, Tiers
from test_sim_engine import CHAINS, toy_times, workload

BLOCK_BYTES = 1000.0
HOST = KvTier(name="host", capacity_bytes=4e3, bytes_per_s=1e9, latency_s=1e-6)
DISK = KvTier(name="disk", capacity_bytes=8e3, bytes_per_s=2e8, latency_s=3e-6)


def blocks_of(work: ServeWorkload, chains: list[list[int]], id_tokens: int, block: int) -> PromptBlocks:
    ids = [h for chain in chains for h in chain]
    starts = np.cumsum([0] + [len(chain) for chain in chains]).tolist()
    return PromptBlocks(ids, starts, work.prompt_tokens.tolist(), id_tokens, block)


def test_overflow_moves_down_and_the_last_tier_forgets():
    small = replace(HOST, capacity_bytes=2e3)
    host, disk = Tier(small, BLOCK_BYTES), Tier(replace(DISK, capacity_bytes=1e3), BLOCK_BYTES)
    tiers = Tiers([host, disk])
    for block in (1, 2, 3, 4):
        tiers.put(block)
    assert (list(host.held), list(disk.held)) == ([3, 4], [2])
    assert tiers.find(1) is None
    assert tiers.find(2) is disk
    tiers.put(3)
    assert list(host.held) == [4, 3]
    assert (host.n_written, disk.n_written) == (4, 2)


def test_a_load_waits_for_the_one_before_and_then_pays_latency_and_bytes():
    tier = Tier(DISK, BLOCK_BYTES)  # 5 us a block
    for block in (7, 8, 9):
        tier.held[block] = None
    assert tier.lands_ps(2, 100) == 100 + 13_000_000
    tier.load([7, 8], 100)
    assert tier.lands_ps(1, 100) == 100 + 18_000_000
    assert list(tier.held) == [9, 8, 7]
    use = tier.use(16)
    assert (use.hit_tokens, use.read_bytes, use.read_s) == (32, 2000.0, pytest.approx(10e-6))


def test_a_tier_smaller_than_a_block_is_refused():
    with pytest.raises(BadInput, match="KV tier 'host' of 4e\\+03 bytes holds no block of 5e\\+03; give it more or drop it"):
        Tier(HOST, 5000.0)


def one_replica(rows, chains, blocks, tiers):
    requests = Requests(workload(rows))
    store = PrefixCache(blocks_of(workload(rows), chains, 16, 16), Tiers(tiers))
    engine = Replica(requests, toy_times(), POLICIES["vllm-v1"], Limits(budget=64, max_seqs=4, blocks=blocks, block_tokens=16), store)
    for q in range(len(requests)):
        assert engine.submit(q)
    return engine, requests, store


def test_a_prompt_found_on_the_host_waits_for_its_load_then_computes_only_the_rest():
    """Request 1 pushes request 0's two blocks out of a pool of 3; request 2 loads them back: 1 us + 2 us, then 1 token of prompt."""
    rows, chains = [(0, 33, 1, 0), (50, 48, 1, 0), (50, 33, 1, 0)], [[1, 2], [5, 6, 7], [1, 2]]
    engine, requests, store = one_replica(rows, chains, 3, [Tier(HOST, BLOCK_BYTES)])
    engine.run()
    t = toy_times()
    assert requests.first[2] == requests.ready[2] + 3_000_000 + t.step_ps(0, 0, [(1, 32)])
    hbm, host = tier_use([store])
    assert (hbm.name, hbm.hit_tokens, host.name, host.hit_tokens) == ("hbm", 0, "host", 32)
    assert (host.read_bytes, host.write_bytes) == (2000.0, 5000.0)  # the 2 blocks of request 0 went out, then all 3 of request 1
    assert store.hit_tokens == 32


def test_a_load_slower_than_computing_is_not_made():
    rows, chains = [(0, 33, 1, 0), (50, 48, 1, 0), (50, 33, 1, 0)], [[1, 2], [5, 6, 7], [1, 2]]
    engine, requests, store = one_replica(rows, chains, 3, [Tier(replace(HOST, bytes_per_s=2e8), BLOCK_BYTES)])
    engine.run()
    assert requests.first[2] == requests.ready[2] + toy_times().step_ps(0, 0, [(33, 0)])
    assert tier_use([store])[1].hit_tokens == 0


def test_others_go_on_while_a_prompt_waits_for_its_load():
    """Request 2 loads for 3 us from the moment it arrives; request 3 behind it runs meanwhile."""
    rows, chains = [(0, 33, 1, 0), (50, 48, 1, 0), (50, 33, 1, 0), (0, 8, 1, 0)], [[1, 2], [5, 6, 7], [1, 2], []]
    engine, requests, _ = one_replica(rows, chains, 4, [Tier(replace(HOST, capacity_bytes=9e3), BLOCK_BYTES)])
    engine.run()
    t = toy_times()
    assert requests.first[3] == requests.ready[3] + t.step_ps(0, 0, [(8, 0)])
    assert requests.first[2] == requests.first[3] + t.step_ps(0, 0, [(1, 32)])


LONG_CHAINS = [[*range(10)], [0, 1, 2, *range(13, 20)], [0, 1, 2, 13, *range(24, 30)], [*range(30, 36)]]
LATE = st.lists(st.tuples(st.integers(0, 40), st.integers(8, 90), st.integers(1, 40), st.integers(0, 2)), min_size=5, max_size=25)


@pytest.mark.parametrize(("kind", "engine"), [(PrefixCache, Replica), (RadixCache, Replica), (PrefixCache, SteppingReplica)])
@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=LATE, chains=st.lists(st.sampled_from(LONG_CHAINS), min_size=25, max_size=25),
       name=st.sampled_from(sorted(set(POLICIES) - {"static", "layered"})), seats=st.integers(1, 9), extra=st.integers(0, 60),
       each=st.sampled_from([1, 2]), spare=st.integers(0, 12), swap=st.booleans(), cut=st.integers(1, 400),
       sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3), rate=st.sampled_from([1e8, 5e8, 1e10]),
       latency=st.sampled_from([0.0, 2e-6]))  # fmt: skip
def test_fast_tiers_equal_naive_tiers(kind, engine, rows, chains, name, seats, extra, each, spare, swap, cut, sizes, rate, latency):
    block, id_tokens = 8, 8 * each
    work, times, policy = workload(rows), toy_times(), POLICIES[name]
    largest = max(-(-(p + o - 1) // block) for _, p, o, _ in rows)
    limits = Limits(budget=seats + extra, max_seqs=seats, blocks=largest + spare, block_tokens=block, swap=swap)
    specs = [
        KvTier(name=str(i), capacity_bytes=s * BLOCK_BYTES, bytes_per_s=rate / (i + 1), latency_s=latency) for i, s in enumerate(sizes)
    ]
    requests = Requests(work)
    tiers = Tiers(Tier(spec, BLOCK_BYTES) for spec in specs)
    store = kind(blocks_of(work, chains, id_tokens, block), tiers)
    fast = engine(requests, times, policy, limits, store)
    for q in range(len(work)):
        assert fast.submit(q)
    fast.run(cut * 1_000_000)
    fast.run()
    seqs = [Seq(q, p, o, requests.ready[q], pr) for q, (_, p, o, pr) in enumerate(rows)]
    slow = NaiveEngine(seqs, times, policy, limits)
    slow.hashes, slow.each, slow.id_tokens = dict(enumerate(chains)), each, id_tokens
    slow.store = NaiveLru() if kind is PrefixCache else NaiveRadix()
    slow.tiers = [NaiveTier(int(s.capacity_bytes // BLOCK_BYTES), BLOCK_BYTES, s.bytes_per_s, s.latency_s) for s in specs]
    slow.run()
    assert list(requests.first) == [s.times[0] for s in seqs]
    assert list(requests.finish) == [s.times[-1] for s in seqs]
    assert (fast.n_steps, fast.n_preempted, fast.free) == (slow.n_steps, slow.n_preempted, fast.blocks)
    assert [(t.n_read, t.n_written) for t in tiers.all] == [(t.n_read, t.n_written) for t in slow.tiers]
    assert not fast.loading
    assert not fast.landed


def test_shared_tiers_are_one_object_behind_all_replicas():
    work = replace(workload([(0, 16, 1, 0)]), block_starts=np.array([0, 1]), block_ids=np.array([4]), block_id_tokens=16)
    plan = EnginePlan(prefix_cache=True, kv_tiers=(HOST, replace(DISK, shared=True)))
    first, second = (s for s in prefix_stores(plan, work, policy_named("vllm-v1"), 16, BLOCK_BYTES / 16, 2) if s is not None)
    assert first.tiers is not None
    assert second.tiers is not None
    assert first.tiers.all[0] is not second.tiers.all[0]
    assert first.tiers.all[1] is second.tiers.all[1]
    first.tiers.all[1].n_read = 3
    assert [use.hit_tokens for use in tier_use([first, second])] == [0, 0, 48]


def test_loads_are_never_faster_than_the_link():
    """Over any run: busy link time is bytes over rate, and no more than the span plus what is still queued."""
    rows = [(5, 33 + 16 * (i % 3), 3, 0) for i in range(60)]
    engine, requests, store = one_replica(rows, [CHAINS[i % 4] for i in range(60)], 6, [Tier(HOST, BLOCK_BYTES), Tier(DISK, BLOCK_BYTES)])
    engine.run()
    uses = tier_use([store])
    assert uses[1].hit_tokens > 0
    for use, spec in zip(uses[1:], (HOST, DISK), strict=True):
        assert use.read_s == use.read_bytes / spec.bytes_per_s <= max(requests.finish) / PS
    assert sum(use.hit_tokens for use in uses) == store.hit_tokens
