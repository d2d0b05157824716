"""How benchmark suites launched their engines, as their scripts say."""

from __future__ import annotations

import pytest
from roofplan.calibrate.serving_recipes import Run, inferencex, undated


def run_of(**changes) -> Run:
    base = {"engine": "sglang", "model": "deepseek-r1", "gpu": "b200", "four_bit": True, "tp": 8, "isl": 1024, "osl": 1024}
    return Run(**(base | {"concurrency": 64, "date": "2026-03-25"} | changes))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"token_budget": 16384, "kv_dtype": "fp8", "poll_steps": 30, "max_num_seqs": 256, "lengths_low_frac": 0.8}),
        ({"concurrency": 8}, {"poll_steps": 10}),
        ({"gpu": "h200", "four_bit": False}, {"token_budget": 32768, "kv_dtype": "", "poll_steps": 0, "max_num_seqs": 512}),
        ({"engine": "trtllm", "date": "2025-11-02"}, {"token_budget": 1152, "wait_steps": 0}),
        ({"engine": "trtllm", "four_bit": False}, {"token_budget": 8192, "wait_steps": 40, "wait_fill_frac": 0.8}),
        ({"engine": "trtllm", "model": "llama3.1-70b", "tp": 4}, {"wait_steps": 20, "token_budget": 16384}),
        ({"engine": "trtllm", "model": "llama3.1-70b"}, {"wait_steps": 0}),
        ({"engine": "trtllm", "dp": 8}, {"wait_steps": 60, "wait_prompts": 8, "token_budget": 8192}),
        ({"engine": "trtllm", "model": "gpt-oss-120b", "dp": 4}, {"wait_steps": 50, "wait_prompts": 4}),
        ({"engine": "vllm", "model": "gpt-oss-120b"}, {"largest_graph": 2048, "kv_dtype": "fp8", "asynchronous": True}),
        ({"engine": "vllm", "model": "minimax-m2", "gpu": "h200"}, {"expert_parallel": True}),
        ({"engine": "vllm", "model": "minimax-m2", "date": "2026-04-08", "isl": 8192}, {"token_budget": 16384, "kv_dtype": "fp8"}),
        ({"engine": "vllm", "model": "qwen3-32b", "isl": 2000}, {"token_budget": 0, "lengths_low_frac": 1.0}),
    ],
)
def test_runs_are_launched_as_their_scripts_say(changes, wanted):
    recipe = inferencex(run_of(**changes))
    assert {name: getattr(recipe, name) for name in wanted} == wanted


def test_runs_without_a_script_spread_their_prompts():
    assert undated("vllm", "0.12.0").lengths_low_frac == 0.98
    assert undated("sglang", "0.5.1.post1").lengths_low_frac == 1.0
