"""The fast replica against the token-by-token one, bit for bit, and laws that hold for any engine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import NaiveEngine, Seq
from naive_store import NaiveLru
from roofplan.costmodels.step_times import PS, StepTimes
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.engine import Replica
from roofplan.sim.kvstore import PrefixCache, PromptBlocks
from roofplan.sim.policies import POLICIES
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.step_count import steps_before


def toy_times(size: int = 600, ranks: int = 1) -> StepTimes:
    """Odd, non-smooth numbers, so that a step too few or many cannot hide."""
    return StepTimes(
        linear=[0] + [7_000_003 + 131_071 * (t // 8) for t in range(1, size)],
        decode=[11_003 * (n % 5 + 1) for n in range(size)],
        decode_slope=[0] + [977 + 13 * n for n in range(1, size)],
        prefill=[0] + [31 * c * c + 17 for c in range(1, size)],
        prefill_slope=[61 * c for c in range(size)],
        swap=1_234_567,
        ranks=ranks,
        own=[5_003 * (t - t % 3) for t in range(size)],
        beside=[0] + [5_003 * (n % 3 + 1) for n in range(1, size)],
        beside_slope=[0] + [331 + 7 * n for n in range(1, size)],
        idle=[211 * (c // 16) for c in range(size)],
    )


def workload(rows: list[tuple[int, int, int, int]]) -> ServeWorkload:
    gaps, prompts, outputs, priorities = zip(*rows, strict=True)
    arrival = np.cumsum(np.array(gaps, float)) * 1e-6
    return ServeWorkload(arrival_s=arrival, prompt_tokens=np.array(prompts), output_tokens=np.array(outputs), priority=np.array(priorities))


REQUESTS = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=25)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=REQUESTS, name=st.sampled_from(sorted(POLICIES)), seats=st.integers(1, 9), extra=st.integers(0, 60),
       block=st.sampled_from([1, 3, 16]), spare=st.integers(0, 200), swap=st.booleans(), cut=st.integers(1, 400),
       ranks=st.sampled_from([1, 1, 2, 5]))  # fmt: skip
def test_fast_engine_equals_naive_engine(rows, name, seats, extra, block, spare, swap, cut, ranks):
    work, times, policy = workload(rows), toy_times(ranks=ranks), POLICIES[name]
    largest = max(-(-(p + o - 1) // block) for _, p, o, _ in rows)
    limits = Limits(budget=seats + extra, max_seqs=seats, blocks=largest + spare // block, block_tokens=block, swap=swap)
    requests = Requests(work)
    fast = Replica(requests, times, policy, limits)
    for q in range(len(work)):
        assert fast.submit(q)
    fast.run(cut * 1_000_000)  # a pause in the middle changes nothing
    fast.run()
    seqs = [Seq(q, p, o, requests.ready[q], pr) for q, (_, p, o, pr) in enumerate(rows)]
    slow = NaiveEngine(seqs, times, policy, limits)
    slow.run()
    assert list(requests.first) == [s.times[0] for s in seqs]
    assert list(requests.finish) == [s.times[-1] for s in seqs]
    assert (fast.n_steps, fast.n_preempted, fast.now) == (slow.n_steps, slow.n_preempted, slow.now)
    gaps = [b - a for s in seqs for a, b in zip(s.times, s.times[1:], strict=False)]
    fast.gaps.fold()
    assert fast.gaps.n_tokens == len(gaps)
    assert abs(fast.gaps.total_ps - sum(gaps)) <= len(gaps) * 2000  # a stretch's gaps are kept at their mean, in whole ps
    assert (fast.free, fast.n, fast.kv, fast.held, fast.n_outstanding) == (fast.blocks, 0, 0, 0, 0)


def test_static_batching_refuses_a_prefix_cache():
    limits = Limits(budget=8, max_seqs=8, blocks=6, block_tokens=16)
    with pytest.raises(BadInput, match="policy=static keeps finished rows"):
        Replica(
            Requests(workload([(0, 1, 1, 0)])), toy_times(), POLICIES["static"], limits, PrefixCache(PromptBlocks([], [0, 0], [1], 16, 16))
        )


CHAINS = [[0, 1, 2, 3], [0, 1, 5, 6], [0, 7], [8, 9, 10]]
"""Prefix-block hashes: prompts of one chain share its leading blocks with the others that begin alike."""


def equals_naive_with_prefixes(cache, oracle, rows, chains, policy, seats, extra, each, spare, swap):
    """Play the requests with a prefix cache of this kind and with the token-by-token engine over its oracle; assert equal results."""
    block, id_tokens = 8, 8 * each
    work, times = workload(rows), toy_times()
    largest = max(-(-(p + o - 1) // block) for _, p, o, _ in rows)
    limits = Limits(budget=seats + extra, max_seqs=seats, blocks=largest + spare, block_tokens=block, swap=swap)
    ids = [h for chain in chains for h in chain]
    starts = np.cumsum([0] + [len(chain) for chain in chains]).tolist()
    requests = Requests(work)
    store = cache(PromptBlocks(ids, starts, work.prompt_tokens.tolist(), id_tokens, block))
    fast = Replica(requests, times, policy, limits, store)
    for q in range(len(work)):
        assert fast.submit(q)
    fast.run()
    seqs = [Seq(q, p, o, requests.ready[q], pr) for q, (_, p, o, pr) in enumerate(rows)]
    slow = NaiveEngine(seqs, times, policy, limits)
    slow.hashes, slow.each, slow.id_tokens, slow.store = dict(enumerate(chains)), each, id_tokens, oracle
    slow.run()
    assert list(requests.first) == [s.times[0] for s in seqs]
    assert list(requests.finish) == [s.times[-1] for s in seqs]
    assert (fast.n_steps, fast.n_preempted, fast.free) == (slow.n_steps, slow.n_preempted, fast.blocks)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=REQUESTS, chains=st.lists(st.sampled_from(CHAINS), min_size=25, max_size=25),
       name=st.sampled_from(sorted(set(POLICIES) - {"static"})), seats=st.integers(1, 9), extra=st.integers(0, 60),
       each=st.sampled_from([1, 2, 4]), spare=st.integers(0, 40), swap=st.booleans())  # fmt: skip
def test_fast_prefix_cache_equals_naive_prefix_cache(rows, chains, name, seats, extra, each, spare, swap):
    equals_naive_with_prefixes(PrefixCache, NaiveLru(), rows, chains, POLICIES[name], seats, extra, each, spare, swap)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 10**9), st.integers(1, 10**6), st.integers(0, 10**4))
def test_steps_before_is_the_largest_count_under_the_span(span, first, growth):
    def total(j):
        return j * first + growth * j * (j + 1) // 2

    j = steps_before(span, first, growth)
    assert j == 0 or total(j) < span
    assert total(j + 1) >= span


def test_request_larger_than_the_pool_is_rejected_and_the_rest_served():
    work = workload([(0, 50, 50, 0), (0, 5, 5, 0)])
    requests = Requests(work)
    engine = Replica(requests, toy_times(), POLICIES["vllm-v1"], Limits(budget=64, max_seqs=8, blocks=6, block_tokens=16))
    assert [engine.submit(0), engine.submit(1)] == [False, True]
    engine.run()
    assert requests.rejected == [0]
    assert requests.finish[0] == -1
    assert requests.finish[1] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"max_seqs": 65}, "max_num_seqs=65 is over the token budget of 64"), ({"blocks": 0}, "blocks=0 must be at least 1")],
)
def test_limits_that_cannot_work_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        Limits(**({"budget": 64, "max_seqs": 8, "blocks": 6, "block_tokens": 16} | change))


def test_one_request_alone_takes_the_sum_of_its_steps():
    """TTFT = prefill step; each further token one decode step over a cache one longer."""
    times = toy_times()
    requests = Requests(workload([(0, 20, 4, 0)]))
    engine = Replica(requests, times, POLICIES["vllm-v1"], Limits(budget=64, max_seqs=8, blocks=10, block_tokens=16))
    engine.submit(0)
    engine.run()
    prefill = times.step_ps(0, 0, [(20, 0)])
    assert requests.first[0] == prefill
    assert requests.finish[0] == prefill + sum(times.step_ps(1, 20 + j, []) for j in (1, 2, 3))


@pytest.mark.parametrize("rate_s", [0.5, 0.8])
def test_seat_of_one_is_a_queue_with_deterministic_service(rate_s):
    """One seat, equal requests, Poisson arrivals: M/D/1, mean wait ``ρ·S/(2(1−ρ))``, within 4 standard errors over seeds."""
    service = toy_times().step_ps(0, 0, [(100, 0)])
    waits = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        arrival = np.cumsum(rng.exponential(service / PS / rate_s, 4000))
        ones = np.ones(4000, np.int64)
        requests = Requests(ServeWorkload(arrival_s=arrival, prompt_tokens=100 * ones, output_tokens=ones))
        engine = Replica(requests, toy_times(), POLICIES["vllm-v1"], Limits(budget=100, max_seqs=1, blocks=100, block_tokens=16))
        for q in range(4000):
            engine.submit(q)
        engine.run()
        waits.append(np.mean(np.array(requests.finish) - np.array(requests.arrival)) - service)
    expected = rate_s * service / (2 * (1 - rate_s))
    assert abs(np.mean(waits) - expected) < 4 * np.std(waits, ddof=1) / np.sqrt(8)
