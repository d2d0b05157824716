"""Fixed loads: least latency at a rate, most requests or least cost with so many clients; against playing everything."""

from __future__ import annotations

import pytest
from roofplan.planner.serve_kinds import Rejected, candidates, kinds_of
from roofplan.planner.serve_play import Player
from roofplan.planner.serve_search import plan_serving
from roofplan.sim.serving_metrics import Slo
from serve_asks import ask


def test_the_least_latency_is_that_of_playing_everything():
    question = ask(objective="latency", rate_per_s=4.0)
    decision = plan_serving(question)
    found = candidates(question, kinds_of(question, decision.system, Rejected()))
    player = Player(question, decision.system)
    seen = [player.seen(c, 2 // c.n_gpus, 4.0 / (2 // c.n_gpus), full=True) for c in found]
    assert decision.choices[0].seen.e2e_s == min(s.e2e_s for s in seen if not s.failed)
    late = [c.seen.e2e_s for c in decision.choices]
    assert late == sorted(late)
    assert decision.proof.gap_frac == 0


def test_without_a_load_one_client_asks_at_a_time():
    choice = plan_serving(ask(objective="latency", slo=Slo())).choices[0]
    assert choice.parts[0].copies == 1
    assert choice.goodput_per_s == pytest.approx(1 / choice.seen.e2e_s, rel=0.02)


def test_clients_draw_the_most_from_the_best_fleet_and_no_more_than_littles_law():
    question = ask(concurrency=16)
    decision = plan_serving(question)
    rates = [c.goodput_per_s for c in decision.choices]
    assert rates == sorted(rates, reverse=True)
    for choice in decision.choices:
        assert choice.goodput_per_s <= 16 / choice.parts[0].played.candidate.e2e_s
        assert choice.seen.tpot_p95_s <= 0.03


def test_few_clients_cost_least_on_few_gpus():
    choice = plan_serving(ask(n_gpus=4, concurrency=4, objective="cost")).choices[0]
    assert choice.n_gpus < 4


def test_clients_that_cannot_be_served_in_time_are_a_broken_promise():
    decision = plan_serving(ask(n_gpus=1, concurrency=200, slo=Slo(tpot_s=0.008)))
    assert not decision.choices
    assert {r for r, _, _ in decision.rejected} & {"promises"}


def test_a_rate_over_every_bound_is_named():
    decision = plan_serving(ask(objective="latency", rate_per_s=1e4))
    assert not decision.choices
    assert "rate" in {r for r, _, _ in decision.rejected}
