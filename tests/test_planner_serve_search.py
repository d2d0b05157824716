"""Planning to serve: brute force on small cases, promises kept, monotonicity, limits named."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from roofplan.planner.serve_ask import RopeScaling
from roofplan.planner.serve_kinds import Rejected, candidates, kinds_of
from roofplan.planner.serve_play import DRAWS, Player
from roofplan.planner.serve_search import _unshown_mix, plan_serving
from roofplan.scenarios import registry
from roofplan.scenarios.serving_parts import Speculation
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.serving_metrics import Slo, saturation
from serve_asks import ask, trace


def best(question) -> float:
    return plan_serving(question).choices[0].goodput_per_s


def brute(question) -> float:
    """Every candidate played to its goodput, every fleet of them: the most that any carries."""
    decision = plan_serving(question)
    found = candidates(question, kinds_of(question, decision.system, Rejected()))
    player = Player(question, decision.system)
    carried: dict[int, float] = {}
    for c in found:
        copies = question.cluster.n_gpus // c.n_gpus
        played = player.carried(c, copies)
        played = player.confirmed(played, copies) if played.goodput_per_s and not played.confirmed else played
        carried[c.n_gpus] = max(carried.get(c.n_gpus, 0.0), played.goodput_per_s)
    n = question.cluster.n_gpus
    fleets = itertools.product(*(range(n // size + 1) for size in carried))
    return max(
        sum(k * v for k, v in zip(f, carried.values(), strict=True))
        for f in fleets if sum(k * s for k, s in zip(f, carried, strict=True)) <= n
    )  # fmt: skip


@pytest.mark.parametrize(("isl", "osl"), [(2000, 200), (300, 300)])
def test_the_search_finds_what_brute_force_finds(isl, osl):
    question = ask(prompt_tokens=isl, output_tokens=osl)
    assert best(question) == pytest.approx(brute(question), rel=0.011)  # a step of the rate grid, or a mix that gains under 5 %


def test_choices_keep_the_promises_under_their_bound_and_are_ranked():
    question = ask()
    decision = plan_serving(question)
    rates = [c.goodput_per_s for c in decision.choices]
    assert rates == sorted(rates, reverse=True)
    for choice in decision.choices:
        assert 0 < choice.goodput_per_s <= choice.bound_per_s
        assert choice.seen.ttft_p95_s <= 2.0
        assert choice.seen.tpot_p95_s <= 0.03
        assert choice.n_gpus <= 2
        assert choice.goodput_per_s <= decision.proof.bound_per_s * (1 + 1e-9)
    assert decision.proof.gap_frac == pytest.approx(decision.proof.bound_per_s / rates[0] - 1, abs=1e-9)
    again = plan_serving(question)
    assert [c.goodput_per_s for c in again.choices] == rates
    assert again.rejected == decision.rejected


def test_a_mix_that_gains_too_little_to_be_shown_is_told():
    """Two layouts on five GPUs carry 4 % more than any one."""

    def part(n_gpus: int, carried: float, name: str) -> SimpleNamespace:
        return SimpleNamespace(goodput_per_s=carried, candidate=SimpleNamespace(n_gpus=n_gpus, describe=lambda: name))

    parts = [part(3, 6.4, "1P (a) + 2D (b)"), part(1, 2.0, "c")]
    race = SimpleNamespace(ask=SimpleNamespace(objective="throughput"), mix=lambda: (parts, (1, 2)))
    best = SimpleNamespace(goodput_per_s=10.0, parts=(1,))
    told = _unshown_mix(race, (best,))
    assert told == ("1 x (1P (a) + 2D (b)) + 2 x (c): 10.4 requests/s on 5 GPUs; a mix of layouts is shown where it gains over 5%")
    assert not _unshown_mix(race, (SimpleNamespace(goodput_per_s=10.5, parts=(1,)),))
    assert not _unshown_mix(race, (best, SimpleNamespace(goodput_per_s=11.0, parts=(1, 2))))
    assert not _unshown_mix(SimpleNamespace(ask=race.ask, mix=lambda: (parts, (0, 5))), (best,))


def test_the_gap_is_that_of_the_search_on_its_draw():
    cluster = registry.cluster("h100-sxm", 5)
    decision = plan_serving(ask(cluster=cluster, gpu=registry.accelerator("h100-sxm"), slo=Slo()))
    best = decision.choices[0]
    assert decision.proof.gap_frac == max(decision.proof.bound_per_s / best.first_draw_per_s - 1, 0)
    assert len(best.drawn_per_s) == DRAWS
    assert best.goodput_per_s <= best.first_draw_per_s


def test_without_promises_no_more_is_promised_than_a_long_run_carries():
    """A run too short to fill the KV pool hid an overload: 17.7 requests/s were promised of one H200 that serves 15.6."""
    question = ask(n_gpus=1, slo=Slo())
    decision = plan_serving(question)
    winner = decision.choices[0]
    part = winner.parts[0]
    n = 8000
    work = question.at_rate(question.requests(n), 0.9 * winner.goodput_per_s)
    result = simulate_deployment(question.model, question.cluster.with_gpus(1), part.deployment, work)
    assert not saturation(result)["saturated"]


def test_more_gpus_and_looser_promises_never_carry_less():
    by_gpus = [best(ask(n_gpus=n)) for n in (1, 2, 3)]
    assert by_gpus == sorted(by_gpus)
    by_tpot = [best(ask(n_gpus=1, slo=Slo(ttft_s=2.0, tpot_s=t))) for t in (0.01, 0.02, 0.05)]
    assert by_tpot == sorted(by_tpot)
    by_ttft = [best(ask(slo=Slo(ttft_s=t, tpot_s=0.03))) for t in (0.2, 10.0)]
    assert by_ttft == sorted(by_ttft)


def test_the_cheapest_fleet_for_a_rate_uses_the_fewest_gpus():
    rate = 1.5 * best(ask(n_gpus=1))
    question = ask(n_gpus=4, rate_per_s=rate, objective="cost")
    decision = plan_serving(question)
    winner = decision.choices[0]
    assert winner.goodput_per_s >= rate
    assert winner.load_per_s == rate
    assert winner.n_gpus == decision.n_gpus_needed == 2
    assert winner.usd_per_mtoken == pytest.approx(2 * question.cluster.on_demand_usd_per_h / 3600 / (rate * 200) * 1e6)
    costs = [c.usd_per_mtoken for c in decision.choices]
    assert costs == sorted(costs)


def test_a_rate_over_the_cluster_says_how_many_gpus_it_needs():
    decision = plan_serving(ask(rate_per_s=40.0))
    assert decision.choices[0].goodput_per_s < 40.0
    assert decision.n_gpus_needed > 2


def test_allowed_formats_never_carry_less():
    question = ask(n_gpus=1)
    plain, low = best(question), best(ask(n_gpus=1, allow_quant=True))
    assert low > plain


def test_speculation_is_taken_where_it_carries_more():
    question = ask(n_gpus=1, prompt_tokens=500, output_tokens=300, slo=Slo(tpot_s=0.01))
    plain = best(question)
    given = Speculation(method="chain", draft_tokens=1, accept_frac=0.9)
    decision = plan_serving(ask(n_gpus=1, prompt_tokens=500, output_tokens=300, slo=Slo(tpot_s=0.01), speculation=given))
    assert decision.choices[0].goodput_per_s > plain
    assert decision.choices[0].plan.speculation is not None


def test_a_million_tokens_are_shared_by_tp_or_cp():
    question = ask(n_gpus=8, prompt_tokens=1 << 20, output_tokens=1024, rope=RopeScaling(kind="yarn", factor=9), slo=Slo(ttft_s=150.0))
    decision = plan_serving(question)
    assert decision.choices
    assert all(c.plan.tp * c.plan.cp > 1 for c in decision.choices)
    assert any(c.plan.cp > 1 for c in decision.choices)
    assert {c.plan.preemption for c in decision.choices} == {"recompute"}  # what engines have a switch for


def test_a_trace_with_hashes_uses_the_prefix_cache():
    decision = plan_serving(ask(n_gpus=1, trace=trace(200), rate_per_s=2.0))
    assert decision.choices[0].plan.prefix_cache


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"slo": Slo(ttft_s=0.001)}, "ttft"),
        ({"slo": Slo(tpot_s=0.0001)}, "tpot"),
        ({"model_name": "llama3.1-405b", "n_gpus": 1}, "memory"),
    ],
)
def test_what_fails_is_named(changes, reason):
    decision = plan_serving(ask(**changes))
    assert decision.choices == ()
    assert {r for r, _, _ in decision.rejected} - {"layout"} == {reason}
