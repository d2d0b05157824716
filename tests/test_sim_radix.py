"""The radix cache: leaves before parents and whole runs at once, by hand and against every path written out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_store import NaiveRadix
from roofplan.sim.kvstore import PromptBlocks
from roofplan.sim.policies import POLICIES
from roofplan.sim.radix import Node, RadixCache
from test_sim_engine import CHAINS, REQUESTS, equals_naive_with_prefixes


def cache(*prompts: list[int], each: int = 1) -> RadixCache:
    starts = np.cumsum([0] + [len(ids) for ids in prompts]).tolist()
    blocks = PromptBlocks([h for ids in prompts for h in ids], starts, [4 * len(ids) for ids in prompts], 4, 4 // each)
    return RadixCache(blocks)


def test_a_branch_splits_the_run_and_is_dropped_leaf_first_oldest_first():
    store = cache([1, 2, 3, 4], [1, 2, 8], [1, 2, 3, 4])
    for request in (0, 1):
        assert store.match(request, 100) == (8 * request, 2 * request)  # request 1 finds blocks 1 and 2, still held
        store.take(request)
    assert store.release(0, 90) == 2
    assert store.release(1, 90) == 0
    root = store.root
    assert [list(child.ids) for child in root.children.values()] == [[1, 2]]
    assert sorted(list(n.ids) for n in root.children[1].children.values()) == [[3, 4], [8]]
    assert store.match(2, 5) == (16, 0)
    assert store.match(2, 4) == (8, 0)  # one block too many: the older leaf, blocks 3 and 4, goes whole
    assert store.match(1, 4) == (12, 0)
    assert store.match(1, 2) == (8, 0)
    assert store.match(1, 1) == (0, 0)
    assert not root.children


def test_a_leaf_in_use_stays_and_so_does_its_path():
    store = cache([1, 2], [1, 3])
    store.match(0, 9)
    store.take(0)
    store.match(1, 9)
    store.take(1)
    store.release(1, 9)
    assert store.match(1, 0) == (4, 1)  # block 3 is gone, block 1 is held by request 0
    assert store.match(0, 0) == (8, 2)


def test_peek_sees_what_match_finds_and_changes_nothing():
    store = cache([1, 2, 3], [1, 2, 9])
    store.match(0, 9)
    store.take(0)
    before = (store.hit_tokens, store.prompt_tokens)
    assert store.peek(1, 9) == 8
    assert (store.hit_tokens, store.prompt_tokens) == before
    assert store.match(1, 9) == (8, 2)


def total(node: Node) -> int:
    return len(node.ids) + sum(total(child) for child in node.children.values())


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=0, max_size=7), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(prompts=PROMPTS, moves=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 20)), max_size=40))
def test_any_history_equals_the_paths_written_out(prompts, moves):
    """Take and release in any order, with the pool's free count at random: matches, sharing and what stays agree at every move."""
    store, slow = cache(*prompts), NaiveRadix()
    held: set[int] = set()
    for pick, free in moves:
        q = pick % len(prompts)
        slow.shrink(free)
        if q in held:
            assert store.release(q, free) == slow.drop(prompts[q])
            held.remove(q)
        else:
            found, shared = slow.find(prompts[q], 0)
            assert store.peek(q, free) == 4 * found
            assert store.match(q, free) == (4 * found, shared)
            store.take(q)
            slow.hold(prompts[q], 0)
            held.add(q)
        assert total(store.root) == slow.n_used() + slow.n_idle()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=REQUESTS, chains=st.lists(st.sampled_from(CHAINS), min_size=25, max_size=25),
       name=st.sampled_from(sorted(set(POLICIES) - {"static", "layered"})), seats=st.integers(1, 9), extra=st.integers(0, 60),
       each=st.sampled_from([1, 2, 4]), spare=st.integers(0, 40), swap=st.booleans())  # fmt: skip
def test_fast_radix_engine_equals_naive(rows, chains, name, seats, extra, each, spare, swap):
    equals_naive_with_prefixes(RadixCache, NaiveRadix(), rows, chains, POLICIES[name], seats, extra, each, spare, swap)
