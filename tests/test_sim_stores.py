"""Prefix stores as the plan asks for them: which kind, what tiers, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.scenarios.serving_parts import KvTier
from roofplan.sim.kvstore import PrefixCache
from roofplan.sim.policies import policy_named
from roofplan.sim.radix import RadixCache
from roofplan.sim.stores import prefix_stores, tier_use

NAMELESS = ServeWorkload(arrival_s=np.zeros(1), prompt_tokens=np.array([40]), output_tokens=np.array([2]))
HASHED = replace(NAMELESS, block_starts=np.array([0, 2]), block_ids=np.array([3, 4]), block_id_tokens=16)
HOST = KvTier(name="host", capacity_bytes=1e6, bytes_per_s=1e9)
PLAN = EnginePlan(prefix_cache=True)


@pytest.mark.parametrize(("policy", "kind"), [("vllm-v1", PrefixCache), ("sglang", RadixCache)])
def test_sglang_keeps_a_tree_and_others_blocks_by_hash(policy, kind):
    stores = prefix_stores(PLAN, HASHED, policy_named(policy), 16, 1000.0, 3)
    assert [type(store) for store in stores] == [kind] * 3
    assert all(store is not None and store.tiers is None for store in stores)


def test_no_prefix_cache_no_stores():
    assert prefix_stores(EnginePlan(), NAMELESS, policy_named("vllm-v1"), 16, 1000.0, 2) == [None, None]
    assert tier_use([]) == ()


def test_a_tier_holds_whole_hash_blocks_of_the_whole_replica():
    store = prefix_stores(replace(PLAN, kv_tiers=(HOST,)), HASHED, policy_named("vllm-v1"), 16, 1000.0, 1)[0]
    assert store is not None
    assert store.tiers is not None
    assert store.tiers.all[0].capacity == 62  # 1e6 bytes / (16 tokens x 1000 bytes)


@pytest.mark.parametrize(
    ("plan", "work", "block", "message"),
    [
        (PLAN, NAMELESS, 16, "the workload names no prompt blocks; use a trace with hash_ids or turn it off"),
        (PLAN, HASHED, 24, "block=24 does not divide the trace's hash blocks of 16 tokens"),
        (replace(PLAN, kv_tiers=(HOST, HOST)), HASHED, 16, "KV tiers host, host: give each a name of its own"),
    ],
)
def test_what_cannot_be_is_refused(plan, work, block, message):
    with pytest.raises(BadInput, match=message):
        prefix_stores(plan, work, policy_named("vllm-v1"), block, 1000.0, 1)
