"""Serving deployments for the tests of the serving emitters, and a way to see what their scripts start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from roofplan.planner.emit.serve.folder import serving_files
from roofplan.planner.emit.serve.job import ServeJob, make_job
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.registry import cluster, model
from roofplan.scenarios.serving import EnginePlan

STAND_IN = '#!/usr/bin/env bash\nprintf "%s\\0" "${0##*/}" "$@" >> "$CALLS"\nprintf "\\n" >> "$CALLS"\n'
PROGRAMS = ("vllm", "vllm-router", "python3", "trtllm-serve", "srun", "scontrol")


def arguments_of(model_name: str = "llama3.1-8b", *, gpu: str = "h100-sxm", n_gpus: int = 0, **parts: Any) -> dict[str, Any]:
    """Keyword arguments of ``make_job``: fields of Deployment and of the job by name, the others of EnginePlan."""
    folder = {"prompt_tokens": 4000, "output_tokens": 500}
    for name in (*folder, "context_tokens", "slo", "shared_prefix_tokens", "rope_scaling", "predicted"):
        if name in parts:
            folder[name] = parts.pop(name)
    names = ("n_replicas", "prefill", "n_prefill", "router", "prefill_sm_frac", "overlap_frac", "nic_per_gpu", "autoscale")
    outer = {name: parts.pop(name) for name in names if name in parts}
    deployment = Deployment(plan=EnginePlan(**parts), **outer)
    size = n_gpus or deployment.n_gpus
    per_node = 8 if size % 8 == 0 else size
    return {"model": model(model_name), "deployment": deployment, "cluster": cluster(gpu, size, per_node), **folder}


def job_of(model_name: str = "llama3.1-8b", **parts: Any) -> ServeJob:
    """The ServeJob of one deployment."""
    return make_job(**arguments_of(model_name, **parts))


def files_of(model_name: str = "llama3.1-8b", **parts: Any) -> dict[str, str]:
    """The emitted folder of one deployment."""
    return serving_files(job_of(model_name, **parts))


def calls_of(script: str, files: dict[str, str], folder: Path, *given: str, **environment: str) -> list[list[str]]:
    """Run one emitted script with stand-ins for the programs it starts: how each was called, program first. AssertionError if it fails."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    bin_folder, calls = folder / "bin", folder / "calls"
    bin_folder.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (bin_folder / name).write_text(STAND_IN)
        (bin_folder / name).chmod(0o755)
    calls.write_text("")
    env = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "CALLS": str(calls), **environment}
    done = subprocess.run(["bash", str(folder / script), *given], env=env, text=True, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line.rstrip("\0").split("\0") for line in calls.read_text().splitlines()]


def flags(call: list[str]) -> dict[str, Any]:
    """``--name value …`` of a call as {name: value, list of values, or True}; a repeated flag collects its values."""
    found: dict[str, Any] = {}
    name = ""
    for word in call:
        if word.startswith("--"):
            name = word[2:]
            found.setdefault(name, [])
        elif name:
            found[name].append(word)
    return {key: True if not values else values[0] if len(values) == 1 else values for key, values in found.items()}
