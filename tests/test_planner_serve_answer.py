"""The JSON and the sentences of a serving decision."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from roofplan.planner.serve_answer import as_json, memory_json, pools, summary
from roofplan.planner.serve_ask import RopeScaling
from roofplan.planner.serve_report import print_report
from roofplan.planner.serve_search import plan_serving
from roofplan.planner.serve_space import host_tier
from roofplan.planner.serve_why import bottleneck, error_frac, notes, show_s, why
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import Speculation
from roofplan.sim.serving_metrics import Slo
from serve_asks import ask


@pytest.fixture(scope="module")
def decided():
    question = ask(n_gpus=3)
    return question, plan_serving(question)


def test_the_answer_is_plain_json_and_names_every_plan(decided):
    question, decision = decided
    data = as_json(question, decision, list(decision.choices), [], 0.1)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert [p["rank"] for p in data["plans"]] == list(range(1, len(decision.choices) + 1))
    for plan, choice in zip(data["plans"], decision.choices, strict=True):
        if len(choice.parts) == 1:
            assert sum(plan["pools"].values()) == choice.n_replicas
            assert (plan["prefill_layout"] is None) == ("mixed" in plan["pools"])
        else:
            assert sum(part["n_gpus"] for part in plan["parts"]) == choice.n_gpus
        assert plan["summary"] == summary(choice)
    assert data["solver"]["gap_frac"] == decision.proof.gap_frac
    assert data["binding_limit"] in ("ttft", "tpot", "hbm", "prefill_compute", "decode_bandwidth", "links")


def test_pools_count_replicas_by_what_they_do(decided):
    for choice in decided[1].choices:
        for part in choice.parts:
            found, deployment = pools(part), part.deployment
            if deployment.n_prefill:
                assert found == {"prefill": deployment.n_prefill, "decode": deployment.n_replicas}
            else:
                assert found == {"mixed": deployment.n_replicas}


def test_when_nothing_is_kept_the_commonest_cause_binds():
    question = ask(slo=Slo(ttft_s=0.001))
    data = as_json(question, plan_serving(question), [], ["--ttft 1s"], 0.1)
    assert data["plans"] == []
    assert data["binding_limit"] == "ttft"
    assert data["nearest"] == ["--ttft 1s"]


def test_memory_adds_up_and_counts_the_host_by_node(decided):
    question, decision = decided
    tier = host_tier(question, EnginePlan(tp=1))
    data = memory_json(decision.choices[0].memory, question, EnginePlan(tp=1, prefix_cache=True, kv_tiers=(tier,)))
    assert data["total_bytes"] == pytest.approx(sum(data[f"{k}_bytes"] for k in ("weights", "activations", "context", "kv")))
    assert data["host_bytes"] == pytest.approx(0.5 * question.cluster.host_ram_bytes)


def test_sentences_say_what_each_rank_loses_to(decided):
    question, decision = decided
    lines = why(question, decision, list(decision.choices))
    assert len(lines) == len(decision.choices)
    assert lines[0].startswith("rank 1 is limited by")
    assert all(f"rank {i}" in line for i, line in enumerate(lines[1:], 2))
    assert why(question, decision, []) == []
    assert all(bottleneck(question, decision, c) in ("prefill_compute", "decode_bandwidth", "links") for c in decision.choices)


def test_a_prediction_carries_its_error(decided):
    question, decision = decided
    found = error_frac(question, decision)
    engine = decision.system.engine
    assert found["throughput"] > engine.throughput_error_frac
    assert found["ttft"] > engine.ttft_error_frac
    assert found["tpot"] > engine.tpot_error_frac
    assert max(found.values()) < 1


def test_notes_caution_where_it_is_due(decided):
    _, decision = decided
    assert notes(ask(), decision, []) == []
    long = ask(prompt_tokens=200_000, rope=RopeScaling(kind="yarn", factor=2), speculation=Speculation(accept_frac=0.8))
    text = " ".join(notes(long, decision, []))
    assert "stretched 2 times" in text
    assert "beyond what was measured" in text
    assert "acceptance of 0.8" in text
    borrowed = ask(gpu_name="l40s", n_gpus=1, prompt_tokens=500)
    assert any("efficiencies are borrowed from" in n for n in notes(borrowed, plan_serving(borrowed), []))


def test_the_report_reads_the_json_alone(decided):
    question, decision = decided
    data = json.loads(json.dumps(as_json(question, decision, list(decision.choices), [], 0.1)))
    console = Console(width=80, record=True, file=io.StringIO())
    print_report(data, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "rank 2" in text


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0123, "12.3 ms"), (0.9996, "1,000 ms"), (1.5, "1.5 s"), (123.4, "123 s"), (1234.5, "1,230 s")]
)
def test_seconds_with_three_digits(seconds, shown):
    assert show_s(seconds) == shown
