"""The serving question: what it refuses, with which sentence, and how it makes requests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from roofplan.planner.serve_ask import RopeScaling, own_rate_per_s, pick, read_rope_scaling
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving_parts import Speculation
from serve_asks import ask, trace


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens=0 must be at least 1"),
        ({"objective": "max-seq"}, "objective='max-seq' is not for --task serve; legal: throughput, cost, latency"),
        ({"speculation": Speculation(method="mtp")}, "llama3.1-8b has no multi-token-prediction layers; use chain with a draft model"),
        ({"rate_per_s": -1.0}, "neither may be negative"),
        ({"rate_per_s": 1.0, "concurrency": 2}, "--rate and --concurrency both say how requests arrive"),
        ({"model_name": "llama3-8b", "prompt_tokens": 8000, "output_tokens": 1000},
         r"isl \+ osl = 9,000 tokens is over the 8,192 that llama3-8b was made for; shorten them, .*--rope-scaling yarn:2"),
        ({"model_name": "llama3-8b", "prompt_tokens": 80_000, "rope": RopeScaling(kind="yarn", factor=4)},
         "is over the 32,768 of llama3-8b with --rope-scaling yarn:4; raise the factor to 10"),
        ({"model_name": "gpt2", "prompt_tokens": 100, "rope": RopeScaling(kind="yarn", factor=4)}, "gpt2-124m has learned positions, not"),
    ],
)  # fmt: skip
def test_questions_that_cannot_be_answered(changes, message):
    with pytest.raises(BadInput, match=message):
        ask(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [("yarn", "is not KIND:FACTOR; write yarn:4"), ("abc:2", "'abc' is not known; legal: yarn"), ("yarn:1", "over 1"),
     ("yarn:nan", "over 1")],
)  # fmt: skip
def test_rope_scaling_that_cannot_be_read(text, message):
    with pytest.raises(BadInput, match=message):
        read_rope_scaling(text)


def test_rope_scaling_lengthens_the_context():
    assert read_rope_scaling("yarn:4") == RopeScaling(kind="yarn", factor=4.0)
    long = ask(prompt_tokens=1 << 20, output_tokens=1024, rope=RopeScaling(kind="yarn", factor=9))
    assert long.context_limit_tokens == 9 * 131_072
    assert long.long_prompts
    assert not ask().long_prompts


def test_a_trace_is_dealt_out_with_its_hashes_and_keeps_its_rhythm():
    question = ask(trace=trace(), keep_arrivals=True)
    work = question.requests(10, every=2)
    assert work.prompt_tokens.tolist() == [1000, 1002, 1004]
    assert work.block_ids.tolist() == [0, 1, 4, 5, 8, 9]
    assert work.block_starts.tolist() == [0, 2, 4, 6]
    assert own_rate_per_s(work) == pytest.approx(1.0)
    fast = question.at_rate(work, 4.0)
    assert fast.arrival_s.tolist() == pytest.approx([0, 0.25, 0.5])
    assert own_rate_per_s(ask(trace=trace()).at_rate(work, 4.0)) != pytest.approx(4.0)  # Poisson: the mean only in the long run
    assert question.hashed
    assert not ask(trace=trace(hashed=False)).hashed


def test_a_trace_without_a_rate_is_named():
    with pytest.raises(BadInput, match="arrive at once, so it has no rate of its own; give --rate"):
        own_rate_per_s(pick(trace(), np.array([0])))


def test_the_longest_request_of_a_trace_counts():
    short = dataclasses.replace(registry.model("llama3.1-8b"), max_seq_tokens=1000)
    with pytest.raises(BadInput, match="the longest request of the trace, 1,020 tokens, is over the 1,000"):
        ask(model=short, trace=trace())
