"""The real vLLM reads what we emit, up to its whole configuration, and its benchmark the arguments of bench.sh.

The emitted scripts run with stand-ins, so what is parsed here is word for word what they would start. vLLM configures for its CPU platform:
what only its CUDA platform checks is not seen, and the two settings it allows on CUDA alone are tried with the platform's answer changed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roofplan.planner.emit.serve import vllm
from roofplan.planner.emit.serve.readme import synthetic_acceptance
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import Speculation
from serve_jobs import calls_of, files_of, job_of

from .harness import in_fork, refuses
from .serve_cases import CASES, GAMMA, SERVE, needs_serve, started


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
