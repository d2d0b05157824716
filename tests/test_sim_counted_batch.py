"""Counters in place of columns: equal to ``Batch`` whatever joins, decodes, leaves and comes back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.sim.batch import Batch
from roofplan.sim.counted_batch import NEVER_ENDS, CountedBatch


@settings(max_examples=200, deadline=None, derandomize=True)
@given(block=st.sampled_from([1, 3, 16]), reserved=st.booleans(),
       moves=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 30), st.integers(0, 6), st.booleans()),
                      min_size=1, max_size=20))  # fmt: skip
def test_it_equals_the_columns(block, reserved, moves):
    """Each move: a sequence joins, so many steps pass, the newest may be put back. Tokens, blocks, ends and growth agree throughout."""
    columns, counters = Batch(32, block), CountedBatch(block, reserved=reserved)
    for q, (length, answer, steps, back) in enumerate(moves):
        last = length + answer
        blocks = -(-(last if reserved else length) // block)
        columns.join(q, length, last, blocks)
        counters.join(q, length, last, blocks)
        for _ in range(steps):
            assert counters.growth(1) == (0 if reserved else columns.growth(1))
            gained, _, done = columns.advance(0, grow=not reserved)
            assert counters.advance(0, grow=not reserved)[::2] == (gained, done)
            for finished in done:
                assert counters.leave(finished) == columns.leave(finished)
        if back and counters.slot:
            newest = next(reversed(counters.slot))
            assert counters.leave(newest, back=True) == columns.leave(newest, back=True)
        assert (counters.n, counters.kv, list(counters.slot)) == (columns.n, columns.kv, list(columns.slot))
        assert counters.next_end == min(counters.slot.values(), default=NEVER_ENDS)
