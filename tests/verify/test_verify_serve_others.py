"""The real SGLang and both routers parse the arguments we emit, MII its settings, a YAML reader TensorRT-LLM's, shellcheck every script."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit.serve import bench, mii, sglang, trtllm, vllm
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios.serving import EnginePlan
from serve_jobs import calls_of, files_of, job_of

from .harness import in_fork, refuses
from .serve_cases import CASES, MTP, SERVE, WIDE, needs_serve, started

BIN = Path(sys.prefix) / "bin"


@needs_serve
def test_sglang_parses_what_we_emit(tmp_path: Path) -> None:
    """SGLang's argument parser reads each script's arguments back to the plan's numbers; misspelt flags and choices are refused."""

    def check() -> None:
        from sglang.srt.server_args import ServerArgs  # type: ignore[import-not-found]

        parser = argparse.ArgumentParser(allow_abbrev=False)
        ServerArgs.add_cli_args(parser)
        n = 0
        for name, role, parts in [*CASES, ("llama3.1-8b", "prefill", {"tp": 2, "n_prefill": 1, "prefill": EnginePlan(cp=2)})]:
            job = job_of(name, **parts)
            plan = job.plans()[role]  # type: ignore[index]
            try:
                call = started(sglang, tmp_path, name, role, parts)
            except CannotExpress:
                continue
            args = parser.parse_args(call[3:])
            assert (args.tp_size, args.pp_size, args.attn_dp_size) == (plan.tp * plan.dp * plan.cp, plan.pp, plan.dp)
            assert (args.ep_size, args.attn_cp_size, args.ep_num_redundant_experts) == (plan.ep, plan.cp, plan.redundant_experts)
            assert args.disaggregation_mode == ("null" if role == "serve" else role)
            assert args.disable_radix_cache == (not plan.prefix_cache)
            n += 1
        assert n >= 18
        good = started(sglang, tmp_path, "llama3.1-8b", "serve", {"tp": 2})[3:]
        for words in (("--chunk-prefill-size", "3"), ("--kv-cache-dtype", "fp8"), ("--tp-size", "two"), ("--disaggregation-mode", "both")):
            refuses(lambda words=words: parser.parse_args([*good, *words]), SystemExit)  # type: ignore[misc]

    in_fork(tmp_path, check, stubs=("IPython",), extra=SERVE)


def test_tensorrt_llm_options_are_yaml() -> None:
    """A YAML reader gives back the options; the keys themselves are from the documentation."""
    import yaml

    for name, parts in (("llama3.1-8b", {"tp": 4}), ("deepseek-v3", {"dp": 8, "ep": 8, "speculation": MTP, "prefix_cache": True, **WIDE})):
        job = job_of(name, **parts)
        assert yaml.safe_load(trtllm.emit(job)["tensorrt-llm/serve.yaml"]) == trtllm.options(job, "serve", job.deployment.plan)


@needs_serve
@pytest.mark.parametrize("engine", [vllm, sglang], ids=["vllm", "sglang"])
def test_routers_read_both_pools(engine: Any, tmp_path: Path) -> None:
    """vllm-router and sglang-router parse their command lines: replicas, policy, a bootstrap port for each prefill server."""
    split = {"n_replicas": 2, "n_prefill": 2, "router": "cache-aware"}
    short = engine.__name__.rsplit(".", 1)[1]
    [pools] = calls_of(f"{short}/router.sh", engine.emit(job_of(**split)), tmp_path)  # type: ignore[arg-type]
    every = {}
    for name in engine.ROUTER_POLICY:
        [every[name]] = calls_of(f"{short}/router.sh", engine.emit(job_of(n_replicas=3, router=name)), tmp_path)
    start = 1 if engine is vllm else 3

    def check() -> None:
        if engine is vllm:
            from vllm_router.launch_router import parse_router_args  # type: ignore[import-not-found]
        else:
            from sglang_router.launch_router import parse_router_args  # type: ignore[import-not-found]
        read = parse_router_args(pools[start:])
        assert [url for url, _ in read.prefill_urls] == ["http://localhost:8100", "http://localhost:8101"]
        assert [port for _, port in read.prefill_urls] == ([None, None] if engine is vllm else [17098, 17099])
        assert read.decode_urls == ["http://localhost:8102", "http://localhost:8103"]
        assert read.policy == "cache_aware"
        for name, call in every.items():
            read = parse_router_args(call[start:])
            assert (len(read.worker_urls), read.policy) == (3, engine.ROUTER_POLICY[name])
        refuses(lambda: parse_router_args([*pools[start:], "--policy", "best"]), SystemExit)
        refuses(lambda: parse_router_args([*pools[start:], "--prefil-policy", "random"]), SystemExit)

    in_fork(tmp_path, check, extra=SERVE)


@needs_serve
def test_mii_reads_its_settings(tmp_path: Path) -> None:
    """MII's configuration and DeepSpeed's ragged engine take the settings; unknown keys and impossible limits are refused."""
    settings = json.loads(mii.emit(job_of(tp=2, n_replicas=2, max_num_seqs=256, token_budget=512))["deepspeed-mii/settings.json"])["serve"]

    def check() -> None:
        from mii.api import _parse_kwargs_to_mii_config  # type: ignore[import-not-found]

        def parse(**changes: Any) -> Any:
            return _parse_kwargs_to_mii_config("some/model", **{**settings, **changes})

        read = parse()
        assert (read.model_conf.tensor_parallel, read.model_conf.replica_num, read.model_conf.max_length) == (2, 2, 4500)
        state = read.model_conf.inference_engine_config.state_manager
        assert (state.max_ragged_batch_size, state.max_ragged_sequence_count, state.max_context) == (512, 256, 4500)
        refuses(lambda: parse(tensor_paralel=2), Exception)
        refuses(lambda: parse(replica_num=0), ValueError)
        refuses(lambda: parse(inference_engine_config={"state_manager": {"max_ragged_batch_size": 8}}), ValueError)

    in_fork(tmp_path, check, stubs=("grpc", "asyncio_extras", "fire", "ujson", "flask", "flask_restful", "werkzeug", "google"), extra=SERVE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{len(case[2])}" if isinstance(case, tuple) else None)
def test_shellcheck_finds_nothing(case: tuple[str, str, dict[str, Any]], tmp_path: Path) -> None:
    """Every emitted shell script."""
    name, _, parts = case
    scripts = []
    for file, text in files_of(name, **parts).items():
        if file.endswith((".sh", ".slurm")):
            scripts.append(tmp_path / file.replace("/", "-"))
            scripts[-1].write_text(text)
    done = subprocess.run([str(BIN / "shellcheck"), *map(str, scripts)], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    assert bench.FEWEST_PROMPTS < bench.MOST_PROMPTS
