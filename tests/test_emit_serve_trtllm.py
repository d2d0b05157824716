"""tensorrt-llm/ and deepspeed-mii/: the options a plan turns into, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit.serve import mii, trtllm
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import KvTier, Speculation
from serve_jobs import calls_of, job_of

HOST = KvTier(name="host", capacity_bytes=1e11, bytes_per_s=2e10)
NVME = KvTier(name="nvme", capacity_bytes=1e12, bytes_per_s=5e9)


def test_options_of_a_role() -> None:
    job = job_of("deepseek-v3", dp=8, ep=8, weight_dtype="nvfp4", kv_dtype="fp8", prefix_cache=True, kv_tiers=(HOST,), max_num_seqs=1024,
                 token_budget=8192, block_tokens=64, speculation=Speculation(method="mtp", draft_tokens=3))  # fmt: skip
    assert trtllm.options(job, "serve", job.deployment.plan) == {
        "tensor_parallel_size": 8,
        "pipeline_parallel_size": 1,
        "moe_expert_parallel_size": 8,
        "enable_attention_dp": True,
        "max_batch_size": 128,
        "max_num_tokens": 1024,
        "max_seq_len": 4500,
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "enable_block_reuse": True, "free_gpu_memory_fraction": 0.9, "dtype": "fp8", "host_cache_size": 100_000_000_000,
            "tokens_per_block": 64,
        },
        "speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 3},
    }  # fmt: skip
    text = trtllm.emit(job)["tensorrt-llm/serve.yaml"]
    assert text.startswith("# TensorRT-LLM 1.2, PyTorch backend: keys as its LLM API documents them; not parsed by the real program.\n")
    assert "kv_cache_config:\n  enable_block_reuse: true\n" in text


def test_disaggregated_server(tmp_path: Path) -> None:
    files = trtllm.emit(job_of(tp=2, n_replicas=2, n_prefill=1, prefill=EnginePlan(tp=4)))
    assert 'cache_transceiver_config:\n  backend: "DEFAULT"\n  max_tokens_in_buffer: 4000\n' in files["tensorrt-llm/prefill.yaml"]
    assert "disable_overlap_scheduler: true" in files["tensorrt-llm/prefill.yaml"]
    assert "disable_overlap_scheduler" not in files["tensorrt-llm/decode.yaml"]
    [call] = calls_of("tensorrt-llm/router.sh", files, tmp_path)
    assert call == ["trtllm-serve", "disaggregated", "-c", "disaggregated.yaml"]
    assert (tmp_path / "tensorrt-llm" / "disaggregated.yaml").read_text() == (
        "hostname: 0.0.0.0\nport: 8000\nbackend: pytorch\n"
        'context_servers:\n  num_instances: 1\n  urls: ["localhost:8100"]\n'
        'generation_servers:\n  num_instances: 2\n  urls: ["localhost:8101", "localhost:8102"]\n'
    )
    [call] = calls_of("tensorrt-llm/decode.sh", files, tmp_path, PORT="8101")
    assert call == ["trtllm-serve", "meta-llama/Llama-3.1-8B", "--backend", "pytorch", "--host", "0.0.0.0", "--port", "8101",
                    "--extra_llm_api_options", "decode.yaml"]  # fmt: skip


def test_every_format_is_a_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"set MODEL to a checkpoint of llama3\.1-8b in fp8"):
        calls_of("tensorrt-llm/serve.sh", trtllm.emit(job_of(weight_dtype="fp8")), tmp_path)


def test_models_of_the_release_with_special_layers_are_emitted() -> None:
    assert trtllm.emit(job_of("qwen3-next-80b-a3b", tp=4))
    assert trtllm.emit(job_of("deepseek-v3.2", tp=8, weight_dtype="fp8_block"))


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("llama3.1-405b", {"tp": 16}, "a replica over several nodes"),
        ("glm-5", {"tp": 8}, r"sparse attention \(DSA\) of glm-5: not among its models; nearest: vLLM or SGLang"),
        ("qwen3.5-397b-a17b", {"tp": 8}, "gated-delta layers of qwen3.5-397b-a17b: not among its models"),
        ("llama3.1-8b", {"n_replicas": 2}, "several replicas without a router of its own"),
        ("llama3.1-8b", {"prompt_tokens": 200_000, "rope_scaling": True}, "rope scaling"),
        ("llama3.1-8b", {"tp": 2, "dp": 2}, "dp=2 tp=2: attention is either split or copied, not both"),
        ("llama3.1-8b", {"cp": 2}, "cp=2"),
        ("qwen3-30b-a3b", {"tp": 4, "pp": 2, "ep": 8}, "ep=8 of 4 GPUs"),
        ("qwen3-30b-a3b", {"tp": 4, "ep": 4, "redundant_experts": 4}, "redundant_experts=4"),
        ("llama3.1-8b", {"kv_dtype": "int8"}, "kv_dtype=int8"),
        ("llama3.1-8b", {"policy": "sglang"}, "policy=sglang"),
        ("llama3.1-8b", {"speculation": Speculation()}, "speculation method=chain"),
        ("llama3.1-8b", {"prefix_cache": True, "kv_tiers": (HOST, NVME)}, "KV tiers past host memory"),
        ("llama3.1-8b", {"prefix_cache": True, "kv_tiers": (NVME,)}, "a KV tier that is not host memory"),
    ],
)
def test_refusals_of_tensorrt_llm(name: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        trtllm.emit(job_of(name, **parts))


def test_mii_settings() -> None:
    files = mii.emit(job_of(tp=2, n_replicas=2, max_num_seqs=256, token_budget=512))
    settings = json.loads(files["deepspeed-mii/settings.json"])
    assert settings["model"] == "meta-llama/Llama-3.1-8B"
    assert settings["serve"] == {
        "deployment_name": "llama3.1-8b", "tensor_parallel": 2, "replica_num": 2, "max_length": 4500, "enable_restful_api": True,
        "restful_api_port": 8000, "inference_engine_config": {"state_manager": {
            "max_tracked_sequences": 256, "max_ragged_sequence_count": 256, "max_ragged_batch_size": 512, "max_context": 4500,
        }},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("llama3.1-8b", {"n_prefill": 1}, "prefill on replicas of its own"),
        ("llama3.1-8b", {"pp": 2}, "its ragged engine shards by tp only"),
        ("llama3.1-8b", {"tp": 8, "n_replicas": 2}, "several nodes"),
        ("llama3.1-8b", {"weight_dtype": "fp8"}, "weights in fp8"),
        ("llama3.1-8b", {"kv_dtype": "fp8"}, "kv_dtype=fp8"),
        ("llama3.1-8b", {"prefix_cache": True}, "a prefix cache or KV tiers"),
        ("llama3.1-8b", {"speculation": Speculation()}, "speculation"),
        ("llama3.1-8b", {"policy": "orca"}, "policy=orca"),
        ("llama3.1-8b", {"preemption": "swap"}, "preemption by swapping"),
        ("llama3.1-8b", {"prompt_tokens": 200_000, "rope_scaling": True}, "rope scaling"),
        ("qwen3-8b", {}, "the qwen3 family, which its ragged engine has no policy for"),
        ("deepseek-v3", {}, "latent attention"),
        ("minimax-m1", {}, "minimax-m1 has lightning layers"),
    ],
)
def test_refusals_of_mii(name: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        mii.emit(job_of(name, **parts))
