"""Predictors of serving experiments: units by hand, orders that theory fixes, and what a case must give."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from roofplan.calibrate.cases import predict
from roofplan.scenarios.clients import Clients
from roofplan.scenarios.errors import BadFile, BadInput, UnknownName
from roofplan.scenarios.load import build
from roofplan.scenarios.reference import Case, select
from roofplan.scenarios.serving_case import Load


def case(predictor: str, **more: Any) -> Case:
    side = {
        "model": "llama3-8b", "gpu": "a100-80gb-sxm", "deployment": {"plan": {"policy": "sarathi", "token_budget": 512}},
        "load": {"n_requests": 40, "prompt_tokens": 1000, "output_tokens": 50, "rate_per_s": 2.0},
    }  # fmt: skip
    table = {
        "name": "c", "system": "S", "claim": "", "metric": "", "unit": "", "predictor": predictor, "published": 1.0, "evidence": "F",
        "reference": "sarathi", "source": "", "serving": side, "serving_baseline": side,
    }  # fmt: skip
    return build(Case, table | more, "c")


def numbers(**values: float) -> dict[str, Any]:
    return {"numbers": values}


def test_steps_add_up() -> None:
    step = predict(case("decode_step_ms", **numbers(n_decodes=8, kv_tokens=1024)))
    assert predict(case("decode_ms_per_token", **numbers(n_decodes=8, kv_tokens=1024))) == pytest.approx(step / 8)
    assert predict(case("decode_tokens_per_s_per_gpu", **numbers(n_decodes=8, kv_tokens=1024))) == pytest.approx(8e3 / step)
    two = predict(case("decode_step_ms", **numbers(n_decodes=8, kv_tokens=1024, tokens_per_step=2)))
    assert two == pytest.approx(step / 2)
    checked = predict(case("decode_step_ms", **numbers(n_decodes=300, kv_tokens=1024, checked_tokens=2)))
    assert checked > predict(case("decode_step_ms", **numbers(n_decodes=300, kv_tokens=1024)))
    assert predict(case("prompt_s", **numbers(kv_tokens=4096))) > 2 * 7.5e9 * 4096 / 312e12
    weights_ms = 2 * 8e9 / 2.039e12 * 1e3
    assert step > 0.9 * weights_ms


def test_piggybacked_decodes_are_cheap_and_chunks_cost() -> None:
    alone = predict(case("decode_ms_per_token", **numbers(n_decodes=4, kv_tokens=1024)))
    beside = predict(case("piggybacked_ms_per_token", **numbers(n_decodes=4, kv_tokens=1024, chunk_tokens=512)))
    assert 0 < beside < alone / 4
    small, large = (predict(case("prefill_cost_ratio", **numbers(kv_tokens=4096, chunk_tokens=c))) for c in (128, 2048))
    assert small > large >= 1
    assert predict(case("prompt_step_ratio", **numbers(chunk_tokens=2048, base_chunk_tokens=1024))) == pytest.approx(2, rel=0.15)


def test_prompts_are_dealt_over_ranks() -> None:
    one = predict(case("prompt_tokens_per_s_per_gpu", **numbers(n_prompts=4, kv_tokens=2048)))
    side = {"model": "llama3-8b", "gpu": "a100-80gb-sxm", "n_gpus": 4, "deployment": {"plan": {"dp": 4}}}
    four = predict(case("prompt_tokens_per_s_per_gpu", serving=side, **numbers(n_prompts=16, kv_tokens=2048)))
    assert four == pytest.approx(one, rel=0.05)


def test_largest_batch_keeps_its_time() -> None:
    best = predict(case("largest_decode_batch", **numbers(kv_tokens=2048, tpot_s=0.03)))
    took = [predict(case("decode_step_ms", **numbers(n_decodes=best + extra, kv_tokens=2048))) for extra in (0, 1)]
    assert took[0] <= 30 < took[1]


def test_a_side_against_itself_gains_nothing() -> None:
    assert predict(case("makespan_gain")) == 1
    assert predict(case("latency_cut", words={"metric": "ttft_s"})) == 1
    assert predict(case("sustained_rate_gain", words={"metric": "e2e_s"}, **numbers(limit_s=6.0, most_per_s=8.0))) == 1
    clients = {"n_requests": 24, "prompt_tokens": 500, "output_tokens": 20, "clients": {"n_clients": 4}}
    side = {"model": "llama3-8b", "gpu": "a100-80gb-sxm", "load": clients}
    promise = numbers(prompt_tokens_per_s=50, tokens_per_s=5)
    assert predict(case("effective_gain", serving=side, serving_baseline=side, **promise)) == 1
    assert predict(case("effective_per_s", serving=side, **promise)) >= predict(case("requests_per_s", serving=side))


def test_latencies_by_mean_and_quantile() -> None:
    mean = predict(case("latency_s", words={"metric": "e2e_s"}))
    high = predict(case("latency_s", words={"metric": "e2e_s"}, **numbers(quantile=0.95)))
    gap = predict(case("latency_s", words={"metric": "itl_s"}, **numbers(quantile=0.5)))
    assert 0.005 < gap < predict(case("latency_s", words={"metric": "tpot_s"})) * 1.5 < mean < high


def test_coverage_is_that_which_set_it() -> None:
    side = {"model": "qwen3-30b-a3b", "gpu": "h100-sxm"}
    again = predict(case("coverage_frac", serving=side, **numbers(seen_tokens=16, seen_frac=0.5, tokens=16)))
    assert again == pytest.approx(0.5, abs=1e-6)
    assert predict(case("balance_frac", serving=side, **numbers(skew=0, ep=8))) == pytest.approx(1)
    assert predict(case("balance_frac", serving=side, **numbers(skew=1, ep=8))) < predict(
        case("balance_frac", serving=side, **numbers(skew=1, ep=8, redundant=32))
    )


def test_published_choices_of_a_split_are_found() -> None:
    assert predict(select(("step-3-split-4k",))[0]) == 2
    asked = select(("step-3-throughput-4k",))[0]
    assert predict(asked) > predict(dataclasses.replace(asked, numbers={**asked.numbers, "n_decodes": 2048}))
    with pytest.raises(BadInput, match="n_attention_nodes=9 of 4 nodes: the FFN needs at least one"):
        predict(dataclasses.replace(asked, numbers={**asked.numbers, "n_attention": 9}))


def test_best_ratio_lies_where_prompt_pieces_and_decodes_end_together() -> None:
    """Chunk over batch less one: 512 / 15 = 34."""
    plans = ({"policy": "sarathi", "token_budget": 512, "max_num_seqs": 16}, {"policy": "static", "max_num_seqs": 16})
    plans[1]["token_budget"] = 20_000
    sides = [
        {"model": "llama3-8b", "gpu": "a100-80gb-sxm", "deployment": {"plan": p}, "load": {"n_requests": 64}} for p in plans
    ]  # fmt: skip
    best = predict(case("best_prompt_to_decode", serving=sides[0], serving_baseline=sides[1], **numbers(total_tokens=2048)))
    assert 20 < best < 60


def test_what_a_serving_case_lacks_is_said() -> None:
    plain = dataclasses.replace(case("decode_step_ms", **numbers(n_decodes=1, kv_tokens=1)), serving=None)
    with pytest.raises(BadInput, match=r"case c: predictor decode_step_ms needs a \[serving\]"):
        predict(plain)
    with pytest.raises(BadInput, match=r"needs a \[serving_baseline\]"):
        predict(dataclasses.replace(case("makespan_gain"), serving_baseline=None))
    with pytest.raises(UnknownName, match="unknown metric 'ttfb_s'"):
        predict(case("latency_s", words={"metric": "ttfb_s"}))
    with pytest.raises(BadInput, match="must say that clients send the requests"):
        predict(case("effective_per_s", **numbers(prompt_tokens_per_s=1, tokens_per_s=1)))
    with pytest.raises(BadInput, match="no rate keeps ttft_s within 1e-09 s"):
        predict(case("sustained_rate_gain", words={"metric": "ttft_s"}, **numbers(limit_s=1e-9, most_per_s=1.0)))
    with pytest.raises(BadInput, match="arrivals are one or the other"):
        Load(rate_per_s=1.0, clients=Clients(n_clients=2))
    with pytest.raises(BadInput, match="n_requests=0 must be from 1"):
        Load(n_requests=0)
    with pytest.raises(BadFile, match="unknown key 'modl'"):
        case("decode_step_ms", serving={"modl": "x"})
