"""Names and counts of serving tables."""

from __future__ import annotations

import pytest
from roofplan.calibrate.serving_formats import Unusable, cache_format
from roofplan.calibrate.serving_names import count, engine_profile, model_name, release_of


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1-8b"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
        ("moonshotai/Kimi-K2.5", "kimi-k2"),
        ("Llama v3.1 70B", "llama3.1-70b"),
    ],
)
def test_models_by_other_names(text: str, name: str) -> None:
    assert model_name(text) == name


def test_unknown_names_are_unusable() -> None:
    with pytest.raises(Unusable, match="model 'Some/Thing-7B' is not in the registry"):
        model_name("Some/Thing-7B")
    with pytest.raises(Unusable, match="engine 'tgi' has no profile; known: gpt-fast, lmdeploy, sglang, trtllm, vllm"):
        engine_profile("tgi", "2.0")


@pytest.mark.parametrize(
    ("framework", "version", "name"),
    [
        ("vLLM", "0.6.3", "vllm-0.6"),
        ("vllm", "0.12.0", "vllm-0.12"),
        ("vllm", "0.19.0", "vllm"),
        ("TensorRT-LLM", "0.15", "trtllm-0.15"),
        ("TensorRT-LLM", "0.9.0", "trtllm-0.11"),
    ],
)
def test_releases_have_profiles(framework: str, version: str, name: str) -> None:
    assert engine_profile(framework, version) == name


@pytest.mark.parametrize(
    ("framework", "version", "date", "release"),
    [
        ("vllm", float("nan"), "2025-10-29", "0.11"),
        ("vllm", "0.19.0", "2025-10-29", "0.19.0"),
        ("trtllm", None, "2025-11-02", None),
        ("vllm", None, "2026-03-01", None),
    ],
)
def test_undated_releases_are_told_by_the_day(framework: str, version: object, date: str, release: object) -> None:
    assert release_of(framework, version, date) == release


@pytest.mark.parametrize(
    ("weights", "experts", "engine", "kv"),
    [
        ("bf16", "nvfp4", "vllm", "fp8"),
        ("nvfp4", "", "vllm-0.12", "bf16"),
        ("fp8", "", "vllm", "bf16"),
        ("fp8", "", "trtllm", "fp8"),
        ("bf16", "nvfp4", "trtllm", "fp8"),
        ("bf16", "int4", "trtllm", "bf16"),
        ("nvfp4", "", "sglang", "bf16"),
    ],
)
def test_caches_are_in_the_format_a_checkpoint_asks_for_where_the_engine_hears(weights: str, experts: str, engine: str, kv: str) -> None:
    assert cache_format(weights, experts, engine) == kv


def test_counts() -> None:
    assert count({"tp": "8"}, "tp") == 8
    assert count({"tp": float("nan")}, "tp", 1) == 1
    assert count({}, "tp", 2) == 2
    with pytest.raises(Unusable, match="tp=1e12 is no count below 1e9"):
        count({"tp": "1e12"}, "tp")
