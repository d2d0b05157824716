"""Closed loops on one replica: closed forms of how requests pass the front end, and of servers that poll or wait."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from roofplan.calibrate.closed_loop import Door, LoopResult, closed_loop
from roofplan.calibrate.serving_recipes import Recipe
from roofplan.costmodels.serving_ops import serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, ServingEngine, serving_engine
from roofplan.sim.replica_kind import replica_model

PLAN = EnginePlan(max_num_seqs=16)
BARE = replace(serving_engine("vllm"), request_cpu_s=0.0, frontend_cpu_s=0.0, token_cpu_s=0.0, overlapped=False)


def play(
    clients: int, n: int, engine: ServingEngine = BARE, recipe: Recipe | None = None, prompt: int = 256, output: int = 64
) -> LoopResult:
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=np.full(n, prompt), output_tokens=np.full(n, output))
    system = replace(serve_system(registry.cluster("h100-sxm", 1), BARE), engine=engine)
    kind = replica_model(registry.model("llama3.1-8b"), PLAN, system, work)
    return closed_loop(kind, PLAN, engine, work, clients, recipe or Recipe())


def test_one_client_sends_when_it_is_answered():
    """Sent times are the finish times before them; every request takes as long as a lone one."""
    run = play(1, 5)
    assert run.sent_s[1:] == pytest.approx(run.finish_s[:-1])
    assert run.finish_s - run.sent_s == pytest.approx(np.full(5, run.finish_s[0]))
    assert run.end_s == pytest.approx(run.finish_s[-1])


def test_never_more_under_way_than_clients():
    run = play(4, 40)
    at = np.sort(np.concatenate([run.sent_s, run.finish_s]))
    under_way = [((run.sent_s <= t) & (run.finish_s > t)).sum() for t in at]
    assert max(under_way) == 4
    assert np.isfinite(run.finish_s).all()


def test_front_end_takes_requests_in_turn():
    """Request i of a burst reaches the scheduler after (i + 1) turns and the latency; the engine is free when the first arrives."""
    slow = replace(BARE, request_cpu_s=0.02, frontend_cpu_s=0.5)
    run, bare = play(3, 3, slow, output=1), play(1, 1, output=1)
    assert run.first_s == pytest.approx([0.02 + 0.5 * (i + 1) + bare.first_s[0] for i in range(3)])


def test_prompts_are_tokenised_in_turn():
    """Request i of a burst of prompts of 256 tokens reaches the scheduler after (i + 1)·256 tokens' time."""
    slow = replace(BARE, token_cpu_s=2e-3)
    run, bare = play(3, 3, slow, output=1), play(1, 1, output=1)
    assert run.first_s == pytest.approx([0.512 * (i + 1) + bare.first_s[0] for i in range(3)])


def test_polling_delays_new_requests_by_less_than_one_interval():
    """Two clients out of phase: a request sent while the other decodes waits at most ``poll_steps`` of its steps longer."""
    eager, polled = play(2, 20, prompt=300, output=50), play(2, 20, recipe=Recipe(poll_steps=10), prompt=300, output=50)
    step = (eager.finish_s[0] - eager.first_s[0]) / 49
    wait, before = polled.first_s - polled.sent_s, eager.first_s - eager.sent_s
    assert wait.max() <= before.max() + 10 * step * 1.05
    assert polled.end_s >= eager.end_s * 0.999


def test_a_server_that_polls_looks_after_prompts_and_counts_from_there():
    """Steps of 10 ps, a look every 7: after a step of prompts at once, then 7 decodes after the last look."""
    replica = SimpleNamespace(now=60, last_decode=50, k=100, r=None)
    door = Door(replica, BARE, Recipe(poll_steps=7), 8192)  # type: ignore[arg-type]
    assert door._poll(55, 10) == 60
    replica.now = replica.last_decode = 90
    replica.k = 103
    assert [door._poll(95, 10), door._poll(130, 10), door._poll(131, 10)] == [130, 130, 200]
    replica.now, replica.last_decode, replica.k = 230, 200, 114  # another step of prompts
    assert door._poll(235, 10) == 235
    replica.now = replica.last_decode = 250
    replica.k = 116
    assert door._poll(245, 10) == 300


def test_batch_wait_holds_a_prompt_until_time_or_tokens():
    """One request at a time finds nothing decoding and is not held; under load the wait is at most the set number of steps."""
    held = Recipe(wait_steps=20, wait_fill_frac=0.9)
    assert play(1, 4, recipe=held).finish_s == pytest.approx(play(1, 4).finish_s)
    uneven = np.array([64, 40, 52, 33, 47, 61, 38, 55] * 3)
    work = ServeWorkload(arrival_s=np.zeros(24), prompt_tokens=np.full(24, 256), output_tokens=uneven)
    kind = replica_model(registry.model("llama3.1-8b"), PLAN, serve_system(registry.cluster("h100-sxm", 1), BARE), work)
    free, late = (closed_loop(kind, PLAN, BARE, work, 8, recipe) for recipe in (Recipe(), held))
    step = float(np.median((free.finish_s - free.first_s) / (uneven - 1)))
    waits = (late.first_s - late.sent_s)[8:]
    assert waits.mean() > (free.first_s - free.sent_s)[8:].mean() + 2 * step
    assert waits.max() < (free.first_s - free.sent_s).max() + 26 * step
    soon = closed_loop(kind, PLAN, BARE, work, 8, Recipe(wait_steps=20, wait_fill_frac=0.0))
    assert soon.finish_s == pytest.approx(free.finish_s)
    balanced = closed_loop(kind, PLAN, BARE, work, 8, Recipe(wait_steps=1000, wait_prompts=2))
    starts = np.unique(balanced.first_s[8:])
    assert len(starts) < len(np.unique(free.first_s[8:]))  # prompts begin in pairs
    assert np.isfinite(balanced.finish_s).all()


def test_overlapped_scheduling_sees_a_request_one_step_late():
    """A request that finds a step running waits for it and for the next, one that finds nothing running is taken at once."""
    late = replace(BARE, overlapped=True)
    assert play(1, 3, late).finish_s == pytest.approx(play(1, 3).finish_s)
    work = ServeWorkload(arrival_s=np.zeros(3), prompt_tokens=np.full(3, 256), output_tokens=np.array([4, 60, 20]))
    kind = replica_model(registry.model("llama3.1-8b"), PLAN, serve_system(registry.cluster("h100-sxm", 1), BARE), work)
    plain, delayed = (closed_loop(kind, PLAN, engine, work, 2, Recipe()) for engine in (BARE, late))
    step = (plain.finish_s[1] - plain.finish_s[2]) / (60 - 4 - 1 - 20 + 1)  # decodes of the last request alone
    assert delayed.sent_s[2] == pytest.approx(plain.sent_s[2])
    assert delayed.first_s[2] - plain.first_s[2] == pytest.approx(step, rel=0.02)
