"""Laws that hold for any engine, whatever policy, prefix store, tiers and way of preempting: tokens, blocks, clocks, Little."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.scenarios.serving_parts import KvTier
from roofplan.sim.engine import Replica
from roofplan.sim.kvstore import PrefixCache, PrefixStore
from roofplan.sim.policies import POLICIES
from roofplan.sim.radix import RadixCache
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.step_log import StepLog
from roofplan.sim.tiers import Tier, Tiers
from test_sim_engine import toy_times, workload
from test_sim_tiers import BLOCK_BYTES, LATE, LONG_CHAINS, blocks_of

CHAINED = sorted(set(POLICIES) - {"static", "layered"})
STORES = st.sampled_from([None, PrefixCache, RadixCache])
SIZES = st.lists(st.integers(1, 20), max_size=3)
CONFIG = {
    "rows": LATE,
    "chains": st.lists(st.sampled_from(LONG_CHAINS), min_size=25, max_size=25),
    "name": st.sampled_from(CHAINED),
    "kind": STORES,
    "sizes": SIZES,
    "seats": st.integers(1, 9),
    "spare": st.integers(0, 12),
    "swap": st.booleans(),
}


def start(rows, chains, name, kind, sizes, seats, spare, swap) -> tuple[Replica, Requests]:
    work = workload(rows)
    limits = Limits(
        budget=seats + 30, max_seqs=seats, blocks=max(-(-(p + o - 1) // 8) for _, p, o, _ in rows) + spare, block_tokens=8, swap=swap
    )
    tiers = Tiers(
        Tier(KvTier(name=str(i), capacity_bytes=n * BLOCK_BYTES, bytes_per_s=1e9 / (i + 1)), BLOCK_BYTES) for i, n in enumerate(sizes)
    )
    store = kind(blocks_of(work, chains, 8, 8), tiers if sizes else None) if kind is not None else None
    requests = Requests(work)
    engine = Replica(requests, toy_times(), POLICIES[name], limits, store)
    engine.log = StepLog()
    for q in range(len(rows)):
        assert engine.submit(q)
    return engine, requests


def stored(store: PrefixStore | None) -> tuple[int, int]:
    """(blocks the store holds for requests, idle ones)."""
    if isinstance(store, PrefixCache):
        return len(store._users), len(store._idle)
    used = idle = 0
    nodes = [store.root] if isinstance(store, RadixCache) else []
    while nodes:
        node = nodes.pop()
        used, idle = used + (len(node.ids) if node.users else 0), idle + (0 if node.users else len(node.ids))
        nodes += node.children.values()
    return used, idle


def private(engine: Replica) -> int:
    """Blocks of running prompts and answers, and those set aside for prompts on their way, beside what the store holds of them."""
    r, store, reserve, total = engine.r, engine.store, engine.policy.reserve_output, 0
    decoding = [entry & ((1 << engine.bits) - 1) for entry in engine.heap]
    away = [q for _, q in engine.loading] + list(engine.landed)
    for q in decoding + away + ([engine.part] if engine.part >= 0 else []):
        left = r.end[q] - engine.k if q in decoding else r.output[q] - 1
        tokens = r.prompt[q] + r.output[q] - 1 - (0 if reserve else left)
        mine = 0 if store is None else store._held[q] if q in away else len(store.blocks.of(q))
        total += -(-tokens // engine.block) - mine
    return total


@settings(max_examples=250, deadline=None, derandomize=True)
@given(**CONFIG)
def test_every_token_is_answered_once_and_every_block_comes_back(rows, **config):
    engine, requests = start(rows, **config)
    engine.run()
    assert min(requests.first) > 0
    assert all(a < f <= e for a, f, e in zip(requests.arrival, requests.first, requests.finish, strict=True))
    engine.gaps.fold()
    assert engine.gaps.n_tokens == sum(o - 1 for _, _, o, _ in rows)
    assert (engine.n, engine.kv, engine.part, engine.n_outstanding) == (0, 0, -1, 0)
    assert not (len(engine.waiting) + len(engine.landed) + len(engine.loading) + len(requests.lost))
    assert engine.free == engine.blocks
    assert sum(engine.grow) == 0
    if engine.store is not None:
        assert stored(engine.store)[0] == 0
        assert engine.store.hit_tokens <= engine.store.prompt_tokens
        for tier in engine.store.tiers.all if engine.store.tiers is not None else ():
            assert len(tier.held) <= tier.capacity


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 600), min_size=1, max_size=8), **CONFIG)
def test_at_any_pause_blocks_and_clock_are_in_order(cuts, **config):
    """free + private + shared = pool and idle <= free at every pause; time never runs back; a pause changes nothing."""
    engine, requests = start(**config)
    at = 0
    for cut in sorted(cuts):
        engine.run(cut * 1_000_000)
        assert engine.now >= at
        at = engine.now
        engine.peek(0)  # lets idle blocks go that the pool has no room for
        used, idle = stored(engine.store)
        assert engine.free + private(engine) + used == engine.blocks
        assert 0 <= idle <= engine.free
    engine.run()
    again, twice = start(**config)
    again.run()
    assert list(requests.finish) == list(twice.finish)
    assert (engine.n_steps, engine.busy_ps, engine.n_preempted) == (again.n_steps, again.busy_ps, again.n_preempted)
    assert engine.log is not None
    rows = engine.log.columns()
    assert np.all(rows["end_ps"] >= rows["start_ps"])
    assert np.all(rows["start_ps"][1:] >= rows["end_ps"][:-1])
    assert rows["free_blocks"].min() >= 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**CONFIG)
def test_littles_law(rows, **config):
    """Time integral of the number in the system = sum of stays; counted here by pausing at every arrival and finish."""
    whole, requests = start(rows, **config)
    whole.run()
    stay = sum(f - r for f, r in zip(requests.finish, requests.ready, strict=True))
    events = sorted({*requests.ready, *requests.finish})
    engine, _ = start(rows, **config)
    area = 0
    for before, after in pairwise(events):
        engine.run(before)  # steps that start before; so what ends by ``before`` has ended
        arrived = sum(r <= before for r in requests.ready)
        done = len(rows) - engine.n_outstanding - sum(1 for f in engine.r.finish if f > before)
        area += (arrived - done) * (after - before)
    assert area == stay


@pytest.mark.parametrize("kind", [PrefixCache, RadixCache])
def test_more_memory_never_finds_less(kind):
    """Hits rise with the pool and with a tier behind it, on prompts that return in turn."""
    rows = [(60, 80, 2, 0)] * 60
    chains = [LONG_CHAINS[i % 4] for i in range(60)]
    hits = []
    for spare, sizes in ((0, []), (20, []), (0, [8]), (0, [40])):
        engine, _ = start(rows, chains, "vllm-v1", kind, sizes, 4, spare, False)
        engine.run()
        assert engine.store is not None
        hits.append(engine.store.hit_tokens)
    assert hits[0] <= hits[1]
    assert hits[0] <= hits[2] <= hits[3]
    assert hits[3] > hits[0]
