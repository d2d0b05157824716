"""Pipelined replicas: equal to the plain engine on one stage, to a slow oracle on several; closed forms of even micro-batches; laws."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import Seq
from naive_pipeline import NaivePipeline
from roofplan.costmodels.pipeline_times import PipelineTimes
from roofplan.costmodels.step_times import StepTimes
from roofplan.scenarios import registry
from roofplan.scenarios.clients import Clients
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.scenarios.serving_parts import Speculation
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.engine import Replica
from roofplan.sim.kvstore import PrefixCache, PromptBlocks
from roofplan.sim.pipeline_replica import PipelineReplica
from roofplan.sim.policies import POLICIES
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.serve_result import ServeResult
from roofplan.sim.step_log import StepLog
from roofplan.sim.stepping import SteppingReplica
from test_sim_engine import CHAINS, toy_times, workload
from test_sim_stepping import PLAIN, SHAPE, played, room


def toy_stages(*layers: int, size: int = 600, ranks: int = 1, host_ps: int = 300_007) -> PipelineTimes:
    head = [211_003 + 70_001 * (n % 4) for n in range(size)]
    host = [host_ps + 10_009 * n for n in range(size)]
    return PipelineTimes(work=toy_times(size, ranks), head=head, host=host, hop=[50_021 + 307 * t for t in range(size)], layers=layers)


def even_stages(n: int, stage: int) -> PipelineTimes:
    """Every micro-batch takes ``stage`` ps on each of ``n`` stages, whatever it holds."""
    zeros = [0] * 600
    work = StepTimes(linear=[0] + [n * stage] * 599, decode=zeros, decode_slope=zeros, prefill=zeros, prefill_slope=zeros)
    return PipelineTimes(work=work, head=zeros, host=zeros, hop=zeros, layers=(1,) * n)


def small(budget: int, seats: int) -> Limits:
    return Limits(budget=budget, max_seqs=seats, blocks=100, block_tokens=16)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=st.sampled_from(PLAIN), chains=st.lists(st.sampled_from(CHAINS), min_size=25, max_size=25), cached=st.booleans(),
       ranks=st.sampled_from([1, 1, 3]), **SHAPE)  # fmt: skip
def test_one_stage_equals_the_plain_engines(name, chains, cached, ranks, rows, seats, extra, block, spare, swap, cut):
    """To the picosecond: first and last tokens, steps, preemptions, busy time, gaps, the log's ends; over two engines."""
    cached = cached and name != "static"
    n, limits, found = len(rows), room(rows, 8 if cached else block, seats, extra, spare, swap), []
    starts, times = np.cumsum([0] + [len(chain) for chain in chains]).tolist(), toy_stages(48, ranks=ranks)
    for kind, tables in ((Replica, times.whole), (SteppingReplica, times.whole), (PipelineReplica, times)):
        requests = Requests(workload(rows))
        blocks = PromptBlocks([h for chain in chains for h in chain], starts, list(requests.prompt), 16, 8)
        engine = kind(requests, tables, POLICIES[name], limits, PrefixCache(blocks) if cached else None)
        engine.log = StepLog()
        played(engine, n, cut * 1_000_000)
        engine.gaps.fold()
        ends = engine.log.columns()["end_ps"][-1]
        found.append((list(requests.first), list(requests.finish), engine.n_steps, engine.n_preempted, engine.free, engine.busy_ps, ends,
                      engine.gaps.n_tokens, engine.n_outstanding))  # fmt: skip
    assert found[0] == found[1] == found[2]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(name=st.sampled_from(PLAIN), layers=st.sampled_from([(1, 1), (3, 2), (2, 2, 1), (5, 6, 6, 5)]),
       ranks=st.sampled_from([1, 1, 3]), host_ps=st.sampled_from([0, 300_007, 5_000_011]), in_turn=st.booleans(), **SHAPE)  # fmt: skip
def test_several_stages_equal_a_token_by_token_oracle(name, layers, ranks, host_ps, in_turn, rows, seats, extra, block, spare, swap, cut):
    limits, requests = room(rows, block, seats, extra, spare, swap), Requests(workload(rows))
    times = dataclasses.replace(toy_stages(*layers, ranks=ranks, host_ps=host_ps), in_turn=in_turn)
    engine = PipelineReplica(requests, times, POLICIES[name], limits)
    played(engine, len(rows), cut * 1_000_000)
    slow = NaivePipeline([Seq(q, p, o, requests.ready[q], pr) for q, (_, p, o, pr) in enumerate(rows)], times, POLICIES[name], limits)
    slow.run()
    assert list(requests.first) == [s.times[0] for s in slow.seqs]
    assert list(requests.finish) == [s.times[-1] for s in slow.seqs]
    assert (engine.n_steps, engine.n_preempted) == (slow.n_steps, slow.n_preempted)
    assert (engine.free, engine.n, engine.kv, engine.held, engine.n_outstanding) == (engine.blocks, 0, 0, 0, 0)
    gaps = [b - a for s in slow.seqs for a, b in zip(s.times, s.times[1:], strict=False)]
    engine.gaps.fold()
    assert (engine.gaps.n_tokens, engine.gaps.total_ps) == (len(gaps), sum(gaps))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(set(PLAIN) - {"static"})), layers=st.sampled_from([(1, 1), (2, 2, 1)]),
       chains=st.lists(st.sampled_from(CHAINS), min_size=25, max_size=25),
       cuts=st.lists(st.integers(1, 600), max_size=5), **SHAPE)  # fmt: skip
def test_laws(name, layers, chains, cuts, rows, seats, extra, block, spare, swap, cut):
    """With a prefix cache: every token is answered once, every block comes back, pauses change nothing, stages never overlap work."""
    starts, times = np.cumsum([0] + [len(chain) for chain in chains]).tolist(), toy_stages(*layers)
    limits, ends = room(rows, 8, seats, extra, spare, swap), []
    for pauses in (cuts, []):
        requests = Requests(workload(rows))
        blocks = PromptBlocks([h for chain in chains for h in chain], starts, list(requests.prompt), 16, 8)
        engine = PipelineReplica(requests, times, POLICIES[name], limits, PrefixCache(blocks))
        engine.log = StepLog()
        for q in range(len(rows)):
            assert engine.submit(q)
        before = 0
        for pause in sorted(pauses):
            engine.run(pause * 1_000_000)
            assert before <= engine.now < pause * 1_000_000 or engine.now == before
            before = engine.now
        engine.run()
        ends.append((list(requests.first), list(requests.finish), engine.n_steps, engine.busy_ps))
        assert all(a < f <= e for a, f, e in zip(requests.arrival, requests.first, requests.finish, strict=True))
        engine.gaps.fold()
        assert engine.gaps.n_tokens == sum(o - 1 for _, _, o, _ in rows)
        assert (engine.free, engine.n, engine.kv, engine.part, engine.n_outstanding) == (engine.blocks, 0, 0, -1, 0)
        assert not (len(engine.waiting) + len(requests.lost) + len(engine.flying))
        assert engine.bubble_ps() >= 0
        table = engine.log.columns()
        assert np.all(table["start_ps"][1:] >= table["end_ps"][:-1])
        assert table["free_blocks"].min() >= 0
        assert engine.now >= max(engine.stage_busy)  # no faster than its slowest stage
    assert ends[0] == ends[1]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_even_micro_batches_leave_no_bubbles(n):
    """``n`` sequences of ``k`` tokens, one a micro-batch: ``n·k + n − 1`` stage times, no stage idle between its first and last work."""
    k, stage = 20, 1_000_003
    requests = Requests(workload([(0, 8, k, 0)] * n))
    engine = PipelineReplica(requests, even_stages(n, stage), POLICIES["vllm-v1"], small(8, n))
    played(engine, n)
    assert engine.now == (n * k + n - 1) * stage
    assert engine.bubble_ps() == 0
    assert requests.finish[0] - requests.first[0] == (k - 1) * n * stage  # a token every round of the pipeline


def test_stages_in_turn_gain_nothing_over_one_gpu():
    """Four sequences whose prompts fill a step each: four micro-batches, one after another through all stages; each may hold every seat."""
    k, stage = 20, 1_000_003
    engine = PipelineReplica(Requests(workload([(0, 8, k, 0)] * 4)), dataclasses.replace(even_stages(4, stage), in_turn=True),
                             POLICIES["orca"], small(8, 4))  # fmt: skip
    played(engine, 4)
    assert engine.now == 4 * k * 4 * stage
    assert [lane.seats for lane in engine.lanes] == [4] * 4


def test_a_lone_sequence_fills_one_stage_at_a_time():
    """One micro-batch on four stages: each token takes a whole pass, and three quarters of every stage's time are bubbles."""
    k, stage = 10, 1_000_003
    engine = PipelineReplica(Requests(workload([(0, 8, k, 0)])), even_stages(4, stage), POLICIES["vllm-v1"], small(8, 4))
    played(engine, 1)
    assert engine.now == 4 * k * stage
    assert engine.bubble_ps() == 4 * (k - 1) * 3 * stage


def test_chunks_of_one_prompt_follow_one_another():
    """80 tokens in chunks of 10 on four stages: 8 + 3 stage times, not 8 passes."""
    requests = Requests(workload([(0, 80, 1, 0)]))
    engine = PipelineReplica(requests, even_stages(4, 1000), POLICIES["vllm-v1"], small(10, 4))
    played(engine, 1)
    assert requests.first[0] == (8 + 3) * 1000


def test_uneven_micro_batches_by_hand():
    """Two stages. A prompt of 30 tokens (3 on each stage), then one of 10 (1 each); answers of two tokens (1 each)."""
    zeros = [0] * 64
    work = StepTimes(linear=[0, 2] + [2] * 9 + [6] * 53, decode=zeros, decode_slope=zeros, prefill=zeros, prefill_slope=zeros)
    times = PipelineTimes(work=work, head=zeros, host=zeros, hop=zeros, layers=(1, 1))
    requests = Requests(workload([(0, 30, 2, 0), (0, 10, 2, 0)]))
    engine = PipelineReplica(requests, times, POLICIES["orca"], small(30, 2))
    played(engine, 2)
    # stage 0: long 0-3, short 3-4, long 6-7, short 7-8; stage 1: long 3-6, short 6-7, long 7-8, short 8-9
    assert list(requests.first) == [6, 7]
    assert list(requests.finish) == [8, 9]
    assert engine.bubble_ps() == (8 - 0 - 6) + (9 - 3 - 6)


def test_the_last_stage_is_as_slow_as_its_head():
    times = dataclasses.replace(even_stages(2, 1000), head=[1000] * 600)
    requests = Requests(workload([(0, 8, 50, 0)] * 2))
    engine = PipelineReplica(requests, times, POLICIES["vllm-v1"], small(8, 2))
    played(engine, 2)
    assert engine.now == 1000 + 2 * 50 * 2000
    assert engine.stirs() == engine.now  # nothing more is to come


def deployed(work: ServeWorkload, clients: Clients | None = None, **changes: Any) -> ServeResult:
    """Llama 3.1 8B in stages of one L40S each."""
    deployment = Deployment(**({"plan": EnginePlan(pp=2, max_num_seqs=24, kv_blocks=900)} | changes))
    return simulate_deployment(registry.model("llama3.1-8b"), registry.cluster("l40s", 8), deployment, work, clients=clients)


def load(n: int, rate: float) -> ServeWorkload:
    rng = np.random.default_rng(7)
    return ServeWorkload(
        arrival_s=np.cumsum(rng.exponential(1 / rate, n)), prompt_tokens=rng.integers(1, 1500, n), output_tokens=rng.integers(1, 120, n)
    )  # fmt: skip


def test_a_clock_between_replicas_changes_nothing_inside_one():
    """Two pipelines behind a router that looks at them, and each by itself on the requests it was given."""
    work = load(200, 8.0)
    apart, together = (deployed(work, n_replicas=1, router=router) for router in ("round-robin", "least-outstanding"))
    assert np.array_equal(apart.finish_s, together.finish_s)
    assert apart.n_preempted > 0
    two = deployed(work, n_replicas=2, router="least-outstanding")
    assert np.all(np.isfinite(two.finish_s))
    assert (two.finish_s - work.arrival_s).mean() < (apart.finish_s - work.arrival_s).mean()


def test_clients_see_what_their_arrivals_replayed_give():
    """A closed loop's own arrivals, played openly, finish when they did: every answer was heard at its time, none early."""
    closed = deployed(load(150, 1.0), Clients(n_clients=12))
    again = deployed(dataclasses.replace(closed.work))
    assert np.array_equal(closed.finish_s, again.finish_s)
    ends = np.sort(closed.finish_s)
    assert np.all(closed.work.arrival_s[12:] == ends[: 150 - 12])


def test_prefill_and_decode_pipelines_apart():
    """All answers come, none before it could: prompts computed on one pipeline, decoded on another."""
    work = load(120, 6.0)
    out = deployed(work, n_replicas=1, n_prefill=1, overlap_frac=0.5)
    assert np.all(np.isfinite(out.finish_s))
    assert np.all(out.finish_s[work.output_tokens > 1] > out.first_s[work.output_tokens > 1])
    assert [pool.name for pool in out.pools] == ["prefill", "decode"]
    assert all(link.n_bytes > 0 for link in out.links)


def test_guesses_and_layers_keep_even_stages():
    """Plans that guess or prefill by layers are priced with even stages and play on; a pipeline of plain steps is played by stages."""
    work = load(20, 4.0)
    for plan in (EnginePlan(pp=2, policy="layered"), EnginePlan(pp=2, speculation=Speculation())):
        assert np.all(np.isfinite(deployed(work, plan=plan).finish_s))
    with pytest.raises(BadInput, match="splits plain engines only; drop pp from the plan"):
        deployed(work, prefill_sm_frac=0.5)
