"""How benchmark suites launched their engines, as their scripts say."""

from __future__ import annotations

import pytest
from roofplan.calibrate.serving_recipes import Recipe, Run, aiconfigurator, crowded, inferencex, speculated, stated, trtllm_bench
from roofplan.scenarios.serving import serving_engine


def run_of(**changes) -> Run:
    base = {
        "engine": "sglang",
        "model": "deepseek-r1",
        "gpu": "b200",
        "four_bit": True,
        "weights": "nvfp4",
        "tp": 8,
        "ep": 1,
        "isl": 1024,
        "osl": 1024,
    }
    return Run(**(base | {"concurrency": 64, "date": "2026-03-25"} | changes))


QWEN = {"model": "qwen3.5-397b-a17b", "four_bit": False, "weights": "fp8_block"}
GLM = {"model": "glm-5", "four_bit": False, "weights": "fp8_block"}


@pytest.mark.parametrize(
    ("changes", "version", "why"),
    [
        ({**QWEN, "tp": 4}, "0.5.9", "pull request 898"),
        ({**QWEN, "tp": 4, "ep": 4}, "0.5.9", ""),
        ({**QWEN, "tp": 8}, "0.5.9", ""),
        ({**QWEN, "gpu": "b300", "tp": 4, "ep": 1, "weights": "bf16"}, "0.5.10.post1", "pull requests 1035, 1048"),
        ({**QWEN, "gpu": "h200", "ep": 8}, "0.5.9", ""),
        ({**GLM, "gpu": "b300"}, "nightly-dev", ""),
        ({"engine": "trtllm", "date": "2026-02-06"}, "1.2", "pull request 642"),
        ({"engine": "trtllm", "date": "2026-02-03"}, "1.2", ""),
    ],
)
def test_runs_that_speculated_or_may_have(changes, version, why):
    found = speculated(run_of(**changes), version)
    assert found.startswith(why) if why else not found


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"token_budget": 16384, "kv_dtype": "fp8", "poll_steps": 30, "max_num_seqs": 256, "lengths_low_frac": 0.8}),
        ({"concurrency": 8}, {"poll_steps": 10, "few_token_products": False}),
        ({"four_bit": False}, {"few_token_products": True, "max_num_seqs": 128}),
        ({"gpu": "h200", "four_bit": False}, {"token_budget": 32768, "kv_dtype": "", "poll_steps": 0, "few_token_products": False}),
        ({"engine": "trtllm", "date": "2025-11-02"}, {"token_budget": 1152, "wait_steps": 0}),
        ({"engine": "trtllm", "four_bit": False}, {"token_budget": 8192, "wait_steps": 40, "wait_fill_frac": 0.8}),
        ({"engine": "trtllm", "model": "llama3.1-70b", "tp": 4}, {"wait_steps": 20, "token_budget": 16384}),
        ({"engine": "trtllm", "model": "llama3.1-70b"}, {"wait_steps": 0}),
        ({"engine": "trtllm", "dp": 8}, {"wait_steps": 60, "wait_prompts": 22, "token_budget": 8192}),
        ({"engine": "trtllm", "model": "gpt-oss-120b", "dp": 4}, {"wait_steps": 50, "wait_prompts": 8}),
        ({"engine": "vllm", "model": "gpt-oss-120b"}, {"largest_graph": 2048, "kv_dtype": "fp8", "asynchronous": True}),
        ({"engine": "vllm", "model": "gpt-oss-120b", "gpu": "h200", "date": "2026-03-27"}, {"kv_dtype": "", "expert_kernel": "marlin"}),
        ({"engine": "vllm", "model": "gpt-oss-120b", "gpu": "h200", "date": "2025-11-02"}, {"expert_kernel": ""}),
        ({"engine": "vllm", "model": "gpt-oss-120b", "date": "2026-03-27"}, {"expert_kernel": ""}),
        ({"engine": "vllm", "model": "llama3.1-70b", "gpu": "h200", "date": "2025-10-29"}, {"kv_dtype": "fp8", "asynchronous": True}),
        ({"engine": "vllm", "model": "llama3.1-70b", "gpu": "h100-sxm", "date": "2025-10-29"}, {"kv_dtype": "", "asynchronous": False}),
        ({"engine": "vllm", "model": "gpt-oss-120b", "gpu": "h100-sxm", "date": "2025-12-05"}, {"asynchronous": True}),
        ({"engine": "vllm", "model": "minimax-m2", "gpu": "h200"}, {"expert_parallel": True}),
        ({"engine": "vllm", "model": "minimax-m2", "date": "2026-04-08", "isl": 8192}, {"token_budget": 16384, "kv_dtype": "fp8"}),
        ({**QWEN, "concurrency": 8}, {"token_budget": 32768, "kv_dtype": "fp8", "state_dtype": "bf16", "poll_steps": 10}),
        ({**QWEN}, {"few_token_products": True}),
        ({**QWEN, "gpu": "b300"}, {"few_token_products": False}),
        ({**QWEN, "gpu": "h200"}, {"token_budget": 16384, "max_num_seqs": 128, "memory_utilization_frac": 0.8, "poll_steps": 0}),
        ({**QWEN, "weights": "bf16"}, {"kv_dtype": "", "state_dtype": "", "poll_steps": 30, "memory_utilization_frac": 0.82}),
        ({**QWEN, "weights": "nvfp4", "four_bit": True, "concurrency": 8}, {"kv_dtype": "fp8", "poll_steps": 30, "state_dtype": ""}),
        ({**GLM, "gpu": "h200"}, {"waves": 5, "kv_dtype": "", "token_budget": 0}),
        ({**GLM}, {"max_num_seqs": 64, "token_budget": 32768, "waves": 10}),
        ({**GLM, "four_bit": True}, {"token_budget": 131072, "kv_dtype": "fp8", "memory_utilization_frac": 0.8}),
        ({"engine": "vllm", "model": "qwen3-32b", "isl": 2000}, {"token_budget": 0, "lengths_low_frac": 1.0}),
    ],
)
def test_runs_are_launched_as_their_scripts_say(changes, wanted):
    recipe = inferencex(run_of(**changes))
    assert {name: getattr(recipe, name) for name in wanted} == wanted


def test_a_recipe_tells_the_engine_which_kernels_to_use():
    engine = serving_engine("sglang")
    asked = Recipe(expert_kernel="cutlass", few_token_products=True).kernels(engine)
    assert (asked.expert_kernel, asked.few_token_products) == ("cutlass", True)
    assert Recipe().kernels(engine) == engine


def test_aiconfigurator_sizes_steps_by_its_clients_and_prompts():
    assert aiconfigurator("vllm-0.12", "0.12.0", 1024, 8).token_budget == 1024 + 8 + 1500
    assert aiconfigurator("trtllm-1.0", "1.0.0rc3", 4096, 64).max_num_seqs == 64
    assert aiconfigurator("trtllm-1.0", "1.0.0rc3", 4096, 64).lengths_low_frac == 1.0
    assert aiconfigurator("sglang", "0.5.6", 4096, 64).plain_text
    assert not inferencex(run_of()).plain_text


@pytest.mark.parametrize(("version", "policy"), [("0.5.1.post1", ""), ("0.5.3", "sglang-mixed"), ("0.5.6.post2", "sglang-mixed")])
def test_sglang_mixes_prompts_with_decodes_once_the_template_says_so(version, policy):
    assert aiconfigurator("sglang", version, 1000, 16).policy == policy


def test_maximum_throughput_runs_queue_what_their_page_says():
    assert trtllm_bench(128, 128).n_requests == 30000
    assert trtllm_bench(20000, 2000).n_requests == 1000
    assert trtllm_bench(2048, 128).n_requests == 3000


def test_a_rows_notes_state_its_requests_and_lengths():
    plain = Recipe(token_budget=2048)
    assert stated(plain, "nothing of use", 8) == plain
    found = stated(plain, "150 requests conc 8, ~20k in/~2k out (+-15%); ITL median", 8)
    assert (found.waves, found.token_budget) == (19, 2048)
    assert (found.lengths_low_frac, found.lengths_high_frac) == pytest.approx((0.85, 1.15))


def test_runs_of_a_wrong_load_are_told():
    oss = {"engine": "vllm", "model": "gpt-oss-120b", "gpu": "h100-sxm", "date": "2025-12-05"}
    assert "sent 512 requests at once" in crowded(run_of(**oss, concurrency=512))
    assert crowded(run_of(**oss, concurrency=64)) == ""
    assert crowded(run_of(**(oss | {"gpu": "h200"}), concurrency=512)) == ""
