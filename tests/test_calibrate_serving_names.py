"""Names and counts of serving tables."""

from __future__ import annotations

import pytest
from roofplan.calibrate.serving_formats import Unusable
from roofplan.calibrate.serving_names import count, engine_profile, model_name


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
    [("vLLM", "0.6.3", "vllm-0.6"), ("vllm", "0.12.0", "vllm-0.12"), ("vllm", "0.19.0", "vllm"), ("TensorRT-LLM", "0.15", "trtllm-0.15"),
     ("TensorRT-LLM", "0.9.0", "trtllm-0.11")],
)
def test_releases_have_profiles(framework: str, version: str, name: str) -> None:
    assert engine_profile(framework, version) == name


def test_counts() -> None:
    assert count({"tp": "8"}, "tp") == 8
    assert count({"tp": float("nan")}, "tp", 1) == 1
    assert count({}, "tp", 2) == 2
    with pytest.raises(Unusable, match="tp=1e12 is no count below 1e9"):
        count({"tp": "1e12"}, "tp")
