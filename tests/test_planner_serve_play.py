"""Playing candidates: the goodput found is the edge, the quick play of split pools is near the full one, closed loops obey Little's law."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from roofplan.costmodels.serving_ops import serve_system
from roofplan.planner.serve_judge import finished_frac
from roofplan.planner.serve_kinds import Candidate, Rejected, candidates, kinds_of
from roofplan.planner.serve_play import DRAWS, RATE_STEP, Player
from roofplan.scenarios.serving import ServeWorkload, serving_engine
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.serving_metrics import Slo
from serve_asks import ask, trace


def table(question) -> tuple[Player, list[Candidate]]:
    system = serve_system(question.cluster, serving_engine(question.engine))
    return Player(question, system), candidates(question, kinds_of(question, system, Rejected()))


def test_the_rate_found_is_carried_and_the_next_one_is_not():
    player, found = table(ask())
    for candidate in (c for c in found if c.prefill is None and c.serve.plan.token_budget == 2048):
        played = player.carried(candidate, 1)
        assert not player.seen(candidate, 1, played.goodput_per_s).failed
        if played.goodput_per_s * RATE_STEP <= candidate.bound_per_s:
            assert player.seen(candidate, 1, played.goodput_per_s * RATE_STEP).failed == played.limit
        assert played.upper_per_s == played.goodput_per_s <= candidate.bound_per_s


def test_a_candidate_that_cannot_reach_what_is_asked_is_given_up_after_one_run():
    player, found = table(ask())
    candidate = next(c for c in found if c.prefill is None)
    good = player.carried(candidate, 1).goodput_per_s
    before = player.n_runs
    lost = player.carried(candidate, 1, at_least=1.05 * good)
    assert player.n_runs == before + 1
    assert lost.goodput_per_s == 0
    assert good <= lost.upper_per_s <= 1.07 * good
    assert player.carried(candidate, 1, at_least=0.9 * good).goodput_per_s == good


def test_equal_rates_are_found_whatever_the_promise_that_binds():
    """Rates lie on one grid: a looser promise finds the same rate or a higher one."""
    tight, loose = (table(ask(slo=Slo(tpot_s=t))) for t in (0.015, 0.0151))
    first, second = (player.carried(found[2], 1).goodput_per_s for player, found in (tight, loose))
    assert second >= first
    assert second / first < 1.1


def test_the_quick_play_of_split_pools_is_near_the_full_one():
    player, found = table(ask(n_gpus=4))
    split = [c for c in found if c.prefill is not None and c.n_gpus == 4 and c.serve.plan.tp == c.prefill.plan.tp == 1]
    for candidate in split:
        quick = player.carried(candidate, 1)
        full = player.confirmed(quick, 1)
        assert full.confirmed
        assert not quick.confirmed
        assert 0.85 * quick.goodput_per_s <= full.goodput_per_s <= quick.goodput_per_s
        light = [player.seen(candidate, 1, 0.3 * full.goodput_per_s, full=way) for way in (True, False)]
        assert light[0].ttft_s == pytest.approx(light[1].ttft_s, rel=0.02)
        assert light[0].tpot_s == pytest.approx(light[1].tpot_s, rel=0.1)


def test_a_closed_loop_draws_what_littles_law_says():
    player, found = table(ask(slo=Slo()))
    candidate = next(c for c in found if c.prefill is None)
    for clients in (1, 16):
        seen = player.closed(candidate, 1, clients)
        assert seen.rate_per_s == pytest.approx(clients / seen.e2e_s, rel=0.05)
        assert seen.rate_per_s <= candidate.bound_per_s
        assert seen.e2e_s >= candidate.e2e_s


def test_long_prompts_are_played_with_fewer_requests():
    player, found = table(ask(prompt_tokens=100_000, output_tokens=10, slo=Slo()))
    counts = {c.serve.plan.token_budget: player.n_requests(c, 100.0) for c in found if c.prefill is None}
    assert counts[2048] < counts[32_768]
    assert min(counts.values()) >= 40


def test_a_settled_rate_is_kept_by_all_draws_but_one():
    player, found = table(ask())
    for candidate in [c for c in found if c.prefill is None and c.serve.plan.token_budget == 2048]:
        first = player.carried(candidate, 1)
        settled = player.settled(first, 1)
        assert settled.goodput_per_s <= first.goodput_per_s == settled.drawn_per_s[0]
        assert settled.upper_per_s == first.upper_per_s
        assert len(settled.drawn_per_s) == DRAWS
        kept = [not player.seen(candidate, 1, settled.goodput_per_s, draw=draw).failed for draw in range(DRAWS)]
        assert sum(kept) >= DRAWS - 1
        assert settled.goodput_per_s == sorted(settled.drawn_per_s)[1]
        for draw, rate in enumerate(settled.drawn_per_s):
            assert not player.seen(candidate, 1, rate, draw=draw).failed


def test_the_gaps_of_a_trace_are_no_draw():
    question = ask(trace=trace(400), keep_arrivals=True)
    player, found = table(question)
    played = player.carried(found[0], 1)
    assert player.settled(played, 1) == played


@pytest.mark.parametrize(("isl", "osl"), [(2000, 200), (500, 1000)])
def test_without_promises_what_arrives_also_ends(isl, osl):
    """Decode pools behind a prefill pool too, whose queues no time to first token shows."""
    question = ask(gpu_name="h100-sxm", model_name="llama3-8b", prompt_tokens=isl, output_tokens=osl, slo=Slo())
    player, found = table(question)
    for candidate in [c for c in found if c.serve.plan.tp == 1 and c.serve.plan.token_budget == 8192]:
        played = player.carried(candidate, 1)
        played = player.settled(player.confirmed(played, 1) if candidate.prefill else played, 1)
        rate = played.goodput_per_s
        work = question.at_rate(question.requests(4 * player.n_requests(candidate, rate)), rate, draw=7)
        result = simulate_deployment(
            question.model, question.cluster, candidate.deployment(), work, engine=player.system.engine, kinds=candidate.kinds
        )
        late = work.arrival_s > work.arrival_s[-1] / 4
        ended = (result.finish_s > work.arrival_s[-1] / 4) & (result.finish_s <= work.arrival_s[-1])
        assert ended.sum() / late.sum() == pytest.approx(1, abs=0.045)


def test_what_ends_is_counted_over_the_second_half_of_the_arrivals():
    work = ServeWorkload(arrival_s=np.arange(5.0), prompt_tokens=np.ones(5, int), output_tokens=np.ones(5, int))
    result = SimpleNamespace(work=work, finish_s=np.array([1.0, 2.5, 3.9, 4.5, np.nan]))
    assert finished_frac(result) == 1.0
    assert finished_frac(SimpleNamespace(work=work, finish_s=np.array([1.0, 2.0, 4.0, 4.5, 5.0]))) == 0.5
