"""The race: pruned candidates could not have won, families are told apart, hopes cover everything."""

from __future__ import annotations

import pytest
from roofplan.costmodels.serving_ops import serve_system
from roofplan.planner.serve_kinds import Rejected, candidates, kinds_of
from roofplan.planner.serve_play import Player
from roofplan.planner.serve_race import Race, family
from roofplan.scenarios.serving import serving_engine
from serve_asks import ask


@pytest.fixture(scope="module")
def race() -> Race:
    question = ask()
    system = serve_system(question.cluster, serving_engine("vllm"))
    found = candidates(question, kinds_of(question, system, Rejected()))
    one = Race(question, Player(question, system), found, 2)
    one.run()
    return one


def test_what_was_not_played_could_not_have_won(race):
    best = max(race.best.values())
    for i, candidate in enumerate(race.found):
        if i not in race.played:
            assert race.copies(candidate) * candidate.bound_per_s <= best


def test_hopes_cover_every_candidate(race):
    hopes = {part.n_gpus: part.value_per_s for part in race.hopes()}
    for i, candidate in enumerate(race.found):
        played = race.played.get(i)
        assert (played.upper_per_s if played else candidate.bound_per_s) <= hopes[candidate.n_gpus]
    most, gap = race.proved()
    assert most >= max(race.best.values()) * (1 - 1e-9)
    assert 0 <= gap < 0.5


def test_families_differ_by_degrees_not_by_limits(race):
    whole = {family(c) for c in race.found if c.prefill is None}
    assert whole == {("whole", "tp=1 bf16"), ("whole", "tp=2 bf16")}
    assert {p.candidate.n_gpus for p in race.exact()} <= {1, 2}
    assert len({family(p.candidate) for p in race.exact()}) == len(race.exact())


def test_everything_has_a_place(race):
    dropped = race.dropped()
    assert set(dropped) <= {"bound", "slower", "unplayed"}
    assert sum(map(len, dropped.values())) + len(race.exact()) == len(race.found)
    assert race.n_gpus_needed() == 0


def test_a_rate_needs_the_fewest_gpus_of_what_was_played(race):
    question = ask(rate_per_s=3 * max(race.best.values()))
    other = Race(question, race.player, race.found, 2)
    other.played = race.played
    assert other.n_gpus_needed() >= 5
