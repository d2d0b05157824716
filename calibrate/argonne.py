"""How Argonne's LLM-Inference-Bench was launched in 2024: its machines, its engines, and one batch of prompts from start to end.

Source: Chitty-Venkata et al., LLM-Inference-Bench (arXiv 2411.00136), and its repository, argonne-lcf/LLM-Inference-Bench: the launch
scripts and READMEs of ``vLLM`` and ``TensorRT-LLM``.
"""

from __future__ import annotations

from dataclasses import replace

from ..scenarios import registry
from ..scenarios.serving import EnginePlan
from .serving_names import FRAMEWORKS, engine_profile

NAME = "LLM-Inference-Bench"
MACHINES = {"a100-80gb-sxm": "polaris"}
"""Card as the table names it -> the cluster. Its A100 scripts are PBS jobs on Polaris' file systems, whose A100 have 40 GB."""
RELEASES = {("trtllm", "a100-80gb-sxm"): "0.13", ("trtllm", "h100-sxm"): "0.11.0", ("trtllm", "gh200-96gb"): "0.12.0"}
"""(Engine, card) -> release: H100's requirements.txt and GH200's README say so; A100's run.py passes multi_block_mode at run time, as from
0.13 on. Others: of 2024. MI300X ran vLLM 0.6.1."""
LONG_TOKENS, CHUNK_TOKENS, LEAST_TOKENS = 32768, 512, 2048
"""vLLM 0.6 cuts the prompts of models with longer contexts into chunks beside decodes, of this many tokens a step; others may start as
many prompt tokens a step as the context has, and at least the last of these. Source: EngineArgs.create_engine_config, SchedulerConfig."""


def argonne_plan(plan: EnginePlan, framework: str, gpu: str, model: str) -> EnginePlan:
    """The plan as the suite ran it.

    TensorRT-LLM's ``run.py`` makes every prompt of a batch of the same word, repeated, and decodes greedily: its sequences are copies of
    one (``alike``). vLLM's scripts draw random tokens. Both engines schedule the batch as any other requests.
    """
    family = FRAMEWORKS.get(framework.lower(), "")
    engine = engine_profile(framework, RELEASES.get((family, gpu)), is_2024=True)
    if family != "vllm":
        return replace(plan, engine=engine, alike=family == "trtllm")
    engine = "vllm-0.6-rocm" if registry.accelerator(gpu).vendor == "amd" else engine
    spec = registry.model(model)
    long = spec.max_seq_tokens > LONG_TOKENS and not spec.window_tokens
    budget = CHUNK_TOKENS if long else max(spec.max_seq_tokens, LEAST_TOKENS)
    return replace(plan, engine=engine, policy="vllm-v1" if long else "", token_budget=budget)
