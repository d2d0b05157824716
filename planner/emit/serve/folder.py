"""One call for the whole folder of a serving deployment: every engine that can express it, the benchmark and a README."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ....scenarios.deployment import Deployment
from ....scenarios.hardware import Cluster
from ....scenarios.model import ModelSpec
from ..target import CannotExpress
from . import bench, readme, slurm
from .job import ServeJob, make_job
from .research import deployable, notes

ENGINES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm", "deepspeed-mii": "mii"}
"""Engine, as its folder is called -> the module that emits it."""


def engines() -> dict[str, ModuleType]:
    """Engine name -> the module that emits for it, in the order of the README."""
    return {name: importlib.import_module(f"{__package__}.{module}") for name, module in ENGINES.items()}


def serving_files(
    *,
    model: ModelSpec,
    deployment: Deployment,
    cluster: Cluster,
    prompt_tokens: int,
    output_tokens: int,
    context_tokens: int = 0,
    slo: Mapping[str, float] | None = None,
    shared_prefix_tokens: int = 0,
    rope_scaling: float = False,
    predicted: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """``{file name: text}`` of the folder that runs ``deployment`` on ``cluster``; write it with ``emit.write.write_folder``.

    ``cluster.n_gpus`` is what the deployment may use (at least ``deployment.n_gpus``). ``prompt_tokens`` and ``output_tokens`` are the
    benchmark's request, ``context_tokens`` the longest request to be allowed (0: their sum), ``shared_prefix_tokens`` the part of the
    prompts that is one and the same (prefix caching). ``slo`` holds what is promised: ``ttft_s``, ``tpot_s``, ``e2e_s``, each optional
    (leave infinite ones out). ``rope_scaling`` (true, or a factor) allows a context over the model's own. Raises BadInput when the
    numbers contradict.

    ``predicted`` may hold, all optional: ``goodput_per_s`` (requests a second within the promises), ``rate_per_s`` (asked for),
    ``ttft_s``, ``tpot_s`` (means at that rate), ``output_tokens_per_s_per_gpu``, ``cost_usd_per_mtoken``, ``error_frac``,
    ``why`` (sentences), and ``curve``: rows ``{"rate_per_s", "ttft_s_mean", "ttft_s_p50", "ttft_s_p99", "tpot_s_mean",
    "tpot_s_p50", "tpot_s_p99", "e2e_s_mean", "output_tokens_per_s"}`` of which only ``rate_per_s`` must be there.
    """
    job = make_job(
        model=model,
        deployment=deployment,
        cluster=cluster,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        context_tokens=context_tokens,
        slo=slo,
        shared_prefix_tokens=shared_prefix_tokens,
        rope_scaling=rope_scaling,
        predicted=predicted,
    )
    runs, found = deployable(job), notes(job)
    written, omitted = emitted(runs)
    files = {name: text for engine in written.values() for name, text in engine.items()}
    files |= bench.emit(job) | slurm.emit(runs, written)
    return {"README.md": readme.render(job, engines(), written, omitted, found), **files}


def emitted(job: ServeJob) -> tuple[dict[str, dict[str, str]], dict[str, CannotExpress]]:
    """The files of each engine that can express the deployment, and for the others why they cannot."""
    written: dict[str, dict[str, str]] = {}
    omitted: dict[str, CannotExpress] = {}
    for name, module in engines().items():
        try:
            written[name] = module.emit(job)
        except CannotExpress as reason:
            omitted[name] = reason
    return written, omitted
