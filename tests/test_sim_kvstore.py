"""The prefix cache by hand: sharing, idling, dropping oldest first, tails before heads."""

from __future__ import annotations

from roofplan.sim.kvstore import PrefixCache, PromptBlocks


def cache() -> PrefixCache:
    """Requests 0 and 1 share blocks 7 and 8; request 2 has its own; blocks of 4 tokens are 2 pool blocks each."""
    return PrefixCache(PromptBlocks([7, 8, 9, 7, 8, 5, 6], [0, 3, 5, 7], [12, 8, 8], 4, 2))


def test_a_shared_prefix_is_held_once_and_freed_when_the_last_leaves():
    store = cache()
    assert store.match(0, 100) == (0, 0)
    store.take(0)
    assert store.match(1, 94) == (8, 4)
    store.take(1)
    assert (store.hit_tokens, store.prompt_tokens) == (7, 20)
    assert store.release(0, 94) == 4
    assert store.release(1, 96) == 0


def test_idle_blocks_are_found_until_the_pool_needs_them_tails_first():
    store = cache()
    store.match(0, 6)
    store.take(0)
    store.release(0, 0)
    assert store.match(1, 6) == (8, 0)
    assert store.match(0, 4) == (8, 0)
    assert store.match(0, 2) == (4, 0)
    assert store.match(0, 1) == (0, 0)


def test_a_partial_last_block_is_never_shared():
    store = PrefixCache(PromptBlocks([1, 2], [0, 2], [7], 4, 1))
    store.match(0, 10)
    store.take(0)
    assert store.release(0, 8) == 0
    assert store.match(0, 10) == (4, 0)
