"""Advice when nothing fits: each sentence is a change that a search then accepts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from roofplan.planner.serve_advice import nearest_changes
from roofplan.planner.serve_search import plan_serving
from roofplan.scenarios import registry
from roofplan.scenarios.units import parse_quantity
from roofplan.sim.serving_metrics import Slo
from serve_asks import ask


def advice(question) -> list[str]:
    return nearest_changes(question, plan_serving(question))


def fits(question) -> bool:
    return any(c.goodput_per_s >= question.rate_per_s for c in plan_serving(question).choices)


def test_a_looser_promise_is_kept():
    question = ask(n_gpus=1, slo=Slo(ttft_s=0.03, tpot_s=0.03))
    sentence = next(s for s in advice(question) if "--ttft" in s)
    promised = parse_quantity(re.search(r"--ttft (\S+)", sentence).group(1), "_s")
    assert promised < 0.5
    assert fits(replace(question, slo=Slo(ttft_s=promised, tpot_s=0.03)))
    assert "under a light load" in sentence


def test_a_rate_is_carried_by_more_gpus_or_a_looser_promise_or_not_at_all():
    question = ask(n_gpus=1, rate_per_s=12.0, slo=Slo(ttft_s=2.0, tpot_s=0.011))
    decision = plan_serving(question)
    assert decision.choices[0].goodput_per_s < 12
    found = nearest_changes(question, decision)
    n = int(re.search(r"--gpus (\d+) carries 12 requests/s", " ".join(found)).group(1))
    assert fits(replace(question, cluster=registry.cluster("h200", n)))
    rate = float(re.search(r"--rate (\S+) fits", " ".join(found)).group(1))
    assert fits(replace(question, rate_per_s=rate * 0.999))
    looser = next(s for s in found if "--tpot" in s)
    assert "under 12 requests/s" in looser


@pytest.mark.parametrize(("changes", "cure"), [({"model_name": "qwen2.5-72b", "n_gpus": 1}, "--gpus 2 fits"),
                                               ({"model_name": "qwen2.5-72b", "n_gpus": 1}, "--allow quant fits")])  # fmt: skip
def test_a_model_too_large_fits_more_gpus_or_fewer_bits(changes, cure):
    assert cure in advice(ask(**changes))


def test_a_context_too_large_for_the_cache_is_shortened():
    found = advice(ask(n_gpus=1, gpu_name="rtx4090", prompt_tokens=100_000, output_tokens=100, slo=Slo()))
    isl = int(re.search(r"--isl (\d+) fits", " ".join(found)).group(1))
    assert fits(ask(n_gpus=1, gpu_name="rtx4090", prompt_tokens=isl, output_tokens=100, slo=Slo()))


def test_nothing_helps_is_said():
    question = ask(n_gpus=1, slo=Slo(tpot_s=1e-6), prompt_tokens=300)
    found = advice(question)
    assert found
    assert all("--gpus" not in s for s in found)
