"""The real servers read what we emit: vLLM up to its whole configuration, SGLang and both routers their arguments, MII its settings.

The emitted scripts run with stand-ins, so what is parsed here is word for word what they would start. vLLM configures for its CPU platform:
what only its CUDA platform checks is not seen, and the two settings it allows on CUDA alone are tried with the platform's answer changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit import hfconfig
from roofplan.planner.emit.serve import bench, mii, sglang, trtllm, vllm
from roofplan.planner.emit.serve.readme import synthetic_acceptance
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import KvTier, Speculation
from serve_jobs import calls_of, files_of, job_of

from .harness import in_fork, refuses

SERVE = Path(sys.prefix) / "serve"
BIN = Path(sys.prefix) / "bin"
needs_serve = pytest.mark.skipif(not SERVE.is_dir(), reason=f"{SERVE} is missing: run tests/verify/install.sh")

HOST = KvTier(name="host", capacity_bytes=2e11, bytes_per_s=2e10)
NVME = KvTier(name="nvme", capacity_bytes=2e12, bytes_per_s=5e9)
GAMMA = Speculation(gamma_by_batch=((4, 5), (16, 3)))
MTP = Speculation(method="mtp", draft_tokens=2)
WIDE: dict[str, Any] = {"weight_dtype": "fp8_block", "kv_dtype": "fp8"}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama3.1-8b", "serve", {"tp": 1}),
    ("llama3.1-8b", "serve", {"tp": 2, "pp": 2, "token_budget": 2048, "max_num_seqs": 64, "prefix_cache": True, "block_tokens": 32}),
    ("llama3.1-8b", "serve", {"weight_dtype": "fp8", "kv_dtype": "fp8", "policy": "priority", "kv_blocks": 5000}),
    ("llama3.1-8b", "serve", {"weight_dtype": "mxfp8"}),
    ("llama3.1-8b", "serve", {"weight_dtype": "int8", "kv_dtype": "int8"}),
    ("llama3.1-8b", "serve", {"weight_dtype": "nvfp4", "kv_dtype": "nvfp4"}),
    ("llama3.1-8b", "serve", {"weight_dtype": "int4", "kv_dtype": "int4"}),
    ("llama3.1-8b", "serve", {"dp": 4}),
    ("llama3.1-405b", "serve", {"tp": 8, "pp": 2}),
    ("llama3.1-8b", "serve", {"tp": 4, "prompt_tokens": 200_000, "rope_scaling": True}),
    ("llama3.1-8b", "serve", {"prefix_cache": True, "kv_tiers": (HOST,)}),
    ("llama3.1-8b", "serve", {"prefix_cache": True, "kv_tiers": (HOST, NVME)}),
    ("llama3.1-8b", "serve", {"speculation": Speculation(draft_tokens=4), "max_num_seqs": 64}),
    ("llama3.1-8b", "serve", {"speculation": GAMMA, "max_num_seqs": 64}),
    ("llama3.1-8b", "prefill", {"tp": 2, "n_prefill": 2, "prefill": EnginePlan(tp=1, token_budget=8192)}),
    ("llama3.1-8b", "decode", {"tp": 2, "n_prefill": 2, "prefix_cache": True, "kv_tiers": (HOST,)}),
    ("qwen3-30b-a3b", "serve", {"tp": 4, "ep": 4}),
    ("qwen3-30b-a3b", "serve", {"tp": 2, "dp": 4, "ep": 8, "max_num_seqs": 512, "token_budget": 8192}),
    ("qwen3-30b-a3b", "serve", {"tp": 4, "ep": 4, "redundant_experts": 16}),
    ("deepseek-v3", "serve", {"tp": 8, "ep": 8, "speculation": MTP, **WIDE}),
    ("deepseek-v3", "decode", {"dp": 16, "ep": 16, "n_prefill": 1, **WIDE}),
    ("deepseek-v3", "prefill", {"tp": 8, "n_prefill": 1, "prefill": EnginePlan(cp=8, **WIDE)}),
    ("deepseek-v3", "serve", {"tp": 4, "cp": 2, **WIDE}),
]
"""Deployments, and the role whose script is parsed."""


def config_of(model: ModelSpec) -> dict[str, Any]:
    """config.json of a model: the emitters' own where they can, DeepSeek-V3's for its shape."""
    try:
        return hfconfig.config_of(model, model.max_seq_tokens)
    except CannotExpress:
        assert model.name == "deepseek-v3"
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": model.hidden, "vocab_size": model.vocab,
        "num_hidden_layers": model.n_layers, "num_attention_heads": model.n_heads, "num_key_value_heads": model.n_heads,
        "intermediate_size": model.ffn_hidden, "moe_intermediate_size": model.moe_ffn_hidden, "n_routed_experts": model.n_experts,
        "n_shared_experts": model.n_shared_experts, "num_experts_per_tok": model.top_k, "first_k_dense_replace": model.n_dense_layers,
        "n_group": model.n_expert_groups, "topk_group": model.top_k_groups, "q_lora_rank": model.q_lora_rank,
        "kv_lora_rank": model.kv_lora_rank, "qk_rope_head_dim": model.rope_head_dim, "qk_nope_head_dim": model.head_dim,
        "v_head_dim": model.v_head_dim, "max_position_embeddings": model.max_seq_tokens, "num_nextn_predict_layers": model.n_mtp_layers,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "routed_scaling_factor": 2.5, "rope_theta": 10000, "moe_layer_freq": 1,
        "hidden_act": "silu", "rms_norm_eps": 1e-06,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    }  # fmt: skip


def started(engine: Any, folder: Path, name: str, role: str, parts: dict[str, Any]) -> list[str]:
    """The arguments one role's script starts its server with, on weights that are no more than a config.json."""
    job = job_of(name, **parts)
    weights = folder / "weights" / name
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "config.json").write_text(json.dumps(config_of(job.model)))
    env = {"MODEL": str(weights), "DRAFT_MODEL": str(weights), "KV_FOLDER": str(folder / "kv"), "ROPE_THETA": "500000.0"}
    env |= {"MASTER_ADDR": "127.0.0.1", "REPLICA_RANK": "0"}
    [call] = calls_of(f"{engine.__name__.rsplit('.', 1)[1]}/{role}.sh", engine.emit(job), folder, **env)
    return call


def vllm_reader() -> Callable[[list[str]], Any]:
    """vLLM's own way from arguments to the configuration of its engine, models inspected in this process instead of in new ones."""
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args  # type: ignore[import-not-found]
    from vllm.model_executor.models import registry  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    registry._run_in_subprocess = lambda inspect: inspect()
    parser = make_arg_parser(FlexibleArgumentParser())

    def read(call: list[str]) -> Any:
        assert call[:2] == ["vllm", "serve"]
        args = parser.parse_args([*call[2:], "--skip-tokenizer-init"])
        args.model = args.model_tag
        validate_parsed_serve_args(args)
        return AsyncEngineArgs.from_cli_args(args).create_engine_config()

    return read


@needs_serve
def test_vllm_configures_what_we_emit(tmp_path: Path) -> None:
    """Each script's arguments give a configuration with the plan's numbers; wrong ones are refused."""

    def check() -> None:
        from vllm import __version__  # type: ignore[import-not-found]

        assert __version__ == vllm.VERSION
        read = vllm_reader()
        for name, role, parts in CASES:
            job = job_of(name, **parts)
            plan = job.plans()[role]  # type: ignore[index]
            with platform_of(plan):
                config = read(started(vllm, tmp_path, name, role, parts))
            agrees(config, job, role, plan)
        negatives(read, tmp_path)

    in_fork(tmp_path, check, extra=SERVE, timeout_s=400.0)


class platform_of:  # noqa: N801
    """Within it vLLM believes what its CUDA platform would say about load balancing of experts and prompts split over ranks."""

    def __init__(self, plan: EnginePlan) -> None:
        self.plan = plan

    def __enter__(self) -> None:
        from vllm.platforms import current_platform  # type: ignore[import-not-found]

        if self.plan.redundant_experts:
            current_platform.is_cuda_alike = lambda: True
        if self.plan.cp > 1:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

    def __exit__(self, *failure: object) -> None:
        from vllm.platforms import current_platform

        current_platform.__dict__.pop("is_cuda_alike", None)
        os.environ.pop("VLLM_USE_V2_MODEL_RUNNER", None)


def agrees(config: Any, job: Any, role: str, plan: EnginePlan) -> None:
    """vLLM read back the plan's layout, limits, formats, cache, transfer and speculation."""
    parallel, scheduler, cache = config.parallel_config, config.scheduler_config, config.cache_config
    assert (parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.data_parallel_size) == (plan.tp, plan.pp, plan.dp)
    assert (parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size) == (plan.cp, plan.cp)
    assert parallel.enable_expert_parallel == (plan.ep > 1)
    assert parallel.eplb_config.num_redundant_experts == plan.redundant_experts
    assert config.model_config.max_model_len == job.context_tokens
    limit = vllm.limits(job, plan)
    assert scheduler.max_num_seqs == limit.max_num_seqs
    if not job.model.is_mla:  # for latent attention the CPU platform turns off chunked prefill and the prefix cache
        assert scheduler.max_num_batched_tokens == max(limit.token_budget, limit.max_num_seqs)
        assert cache.enable_prefix_caching == plan.prefix_cache
    assert cache.cache_dtype == vllm.KV_DTYPE.get(plan.kv_dtype, "auto")
    transfer = config.kv_transfer_config
    connectors = [] if transfer is None else [transfer.kv_connector]
    assert bool(connectors) == (role != "serve" or bool(plan.kv_tiers))
    spec = plan.speculation
    if spec is None:
        assert config.speculative_config is None
        return
    assert config.speculative_config.method == ("mtp" if spec.method == "mtp" else "draft_model")
    if spec.gamma_by_batch:
        from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup as table  # type: ignore[import-not-found]

        rows = config.speculative_config.num_speculative_tokens_per_batch_size
        assert table(rows, limit.max_num_seqs, 5)[1:] == [5] * 4 + [3] * 12 + [0] * (limit.max_num_seqs - 16)
        refuses(lambda: table([[2, 8, 3]], 64, 5), ValueError)


def negatives(read: Callable[[list[str]], Any], folder: Path) -> None:
    """The same reader refuses what is wrong, so that its acceptance says something."""
    call = started(vllm, folder, "llama3.1-8b", "serve", {"tp": 2, "speculation": GAMMA, "max_num_seqs": 64})

    def with_flag(*words: str) -> Callable[[], Any]:
        return lambda: read([*call, *words])

    for words in (
        ("--tensor-parallel-size", "5"),
        ("--max-model-len", "200000"),
        ("--kv-cache-dtype", "fp7"),
        ("--quantization", "fp9"),
        ("--gpu-memory-utilization", "9.0"),
        ("--max-num-batched-tokens", "32"),
        ("--decode-context-parallel-size", "2"),
        ("--prefill-context-parallel-size", "2"),
        ("--enable-eplb",),
        ("--speculative-config", '{"method": "draft_model", "num_speculative_toks": 5}'),
        ("--hf-overrides", '{"max_position_embeddings": 1000}'),
    ):
        refuses(with_flag(*words), ValueError, AssertionError)
    for words in (
        ("--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_prod"}'),
        ("--kv-transfer-config", '{"kv_connector": "NixlConnector"}'),
        ("--max-model-length", "4500"),
        ("--scheduling-policy", "sjf"),
    ):
        refuses(with_flag(*words), SystemExit)


@needs_serve
def test_benchmark_arguments_are_vllms(tmp_path: Path) -> None:
    """`vllm bench serve` parses what bench.sh starts, names its results as compare.py does, and refuses misspelt flags."""
    files = files_of(tp=1, slo={"ttft_s": 2.0, "tpot_s": 0.03}, shared_prefix_tokens=1000, predicted={"goodput_per_s": 3.0})
    [run, _] = calls_of("bench/bench.sh", files, tmp_path)

    def check() -> None:
        os.environ["VLLM_TARGET_DEVICE"] = "cpu"
        from vllm.benchmarks import serve  # type: ignore[import-not-found]

        parser = argparse.ArgumentParser(allow_abbrev=False)
        serve.add_cli_args(parser)
        args = parser.parse_args(run[3:])
        assert serve.check_goodput_args(args) == {"ttft": 2000.0, "tpot": 30.0}
        assert (args.random_input_len, args.random_prefix_len, args.random_output_len, args.request_rate) == (3000, 1000, 500, 3.0)
        source = Path(serve.__file__).read_text()
        compare = files["bench/compare.py"]
        assert '"mean_ttft_ms"' in compare
        for name in ("mean_{metric_attribute_name}_ms", "median_{metric_attribute_name}_ms", '"output_throughput"', '"request_rate"'):
            assert name in source, name
        refuses(lambda: parser.parse_args([*run[3:], "--random-inputs", "3"]), SystemExit)
        refuses(lambda: parser.parse_args([*run[3:], "--backend", "openal"]), SystemExit)

    in_fork(tmp_path, check, extra=SERVE)


@needs_serve
def test_synthetic_acceptance_is_what_vllm_takes(tmp_path: Path) -> None:
    """The keys that hold acceptance at the assumed one: as many rates as draft tokens, none rising."""
    keys = synthetic_acceptance(Speculation(draft_tokens=4, accept_frac=0.7, accept_spread_frac=0.2))

    def check() -> None:
        os.environ["VLLM_TARGET_DEVICE"] = "cpu"
        from vllm.config.speculative import SpeculativeConfig  # type: ignore[import-not-found]

        resolve = SpeculativeConfig._resolve_synthetic_acceptance_rates
        rates = keys["synthetic_acceptance_rates"]
        assert resolve(4, rates, None) == rates
        refuses(lambda: resolve(3, rates, None), ValueError)
        refuses(lambda: resolve(4, rates[::-1], None), ValueError)

    in_fork(tmp_path, check, extra=SERVE)


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
