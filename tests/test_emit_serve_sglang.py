"""sglang/: each option of a plan is a flag of `sglang.launch_server`, whose tp counts every GPU of a stage; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit.serve import sglang
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import KvTier, Speculation
from serve_jobs import calls_of, flags, job_of

HOST = KvTier(name="host", capacity_bytes=8e11, bytes_per_s=2e10)
NVME = KvTier(name="nvme", capacity_bytes=1e12, bytes_per_s=5e9)


def served(folder: Path, role: str = "serve", model_name: str = "llama3.1-8b", env: dict[str, str] | None = None, **parts: Any) -> Any:
    """What `python3 -m sglang.launch_server` is called with by the script of one role."""
    [call] = calls_of(f"sglang/{role}.sh", sglang.emit(job_of(model_name, **parts)), folder, **(env or {}))
    assert call[:3] == ["python3", "-m", "sglang.launch_server"]
    return flags(call)


def test_one_replica(tmp_path: Path) -> None:
    found = served(tmp_path, tp=2, engine="sglang", token_budget=4096, max_num_seqs=128, prefix_cache=True)
    assert found == {
        "model-path": "meta-llama/Llama-3.1-8B", "host": "0.0.0.0", "port": "8000", "served-model-name": "llama3.1-8b",
        "context-length": "4500", "tp-size": "2", "dtype": "bfloat16", "kv-cache-dtype": "bfloat16", "max-running-requests": "128",
        "chunked-prefill-size": "4096", "max-prefill-tokens": "4096", "mem-fraction-static": "0.88",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"pp": 2}, {"pp-size": "2"}),
        ({"weight_dtype": "fp8", "kv_dtype": "fp8"}, {"quantization": "fp8", "kv-cache-dtype": "fp8_e4m3", "dtype": None}),
        ({"prefix_cache": False}, {"disable-radix-cache": True}),
        ({"prefix_cache": True}, {"disable-radix-cache": None, "enable-mixed-chunk": True}),
        ({"policy": "sglang"}, {"enable-mixed-chunk": None}),
        ({"policy": "priority"}, {"enable-priority-scheduling": True, "schedule-low-priority-values-first": True}),
        ({"kv_blocks": 5000, "block_tokens": 64}, {"max-total-tokens": "320000", "page-size": "64"}),
    ],
)
def test_each_option_is_a_flag(parts: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    found = served(tmp_path, **parts)
    assert {name: found.get(name) for name in expected} == expected


def test_the_format_of_recurrent_states_is_said(tmp_path: Path) -> None:
    hybrid = {"model_name": "qwen3.5-397b-a17b", "tp": 8}
    assert served(tmp_path, **hybrid)["mamba-ssm-dtype"] == "float32"
    assert served(tmp_path, **hybrid, state_dtype="bf16")["mamba-ssm-dtype"] == "bfloat16"
    assert "mamba-ssm-dtype" not in served(tmp_path)


def test_formats_that_need_a_checkpoint(tmp_path: Path) -> None:
    """Only fp8 is made of 16-bit weights while loading; DeepSeek-V3's own 8 bits need neither flag nor other weights."""
    with pytest.raises(AssertionError, match=r"set MODEL to a checkpoint of llama3\.1-8b in fp8_block"):
        served(tmp_path, weight_dtype="fp8_block")
    assert "quantization" not in served(tmp_path, weight_dtype="fp8_block", env={"MODEL": "mine"})
    found = served(tmp_path, model_name="deepseek-v3", tp=8, weight_dtype="fp8_block")
    assert (found["model-path"], found.get("quantization")) == ("deepseek-ai/DeepSeek-V3", None)
    with pytest.raises(AssertionError, match="set MODEL to a checkpoint of deepseek-v3 in bf16"):
        served(tmp_path, model_name="deepseek-v3", tp=8)


def test_data_parallel_attention(tmp_path: Path) -> None:
    """tp counts all GPUs of a stage, attn-dp the attention groups in it; limits are of the whole replica."""
    found = served(tmp_path, model_name="qwen3-30b-a3b", tp=2, dp=4, ep=8, redundant_experts=16, max_num_seqs=400, token_budget=8192)
    assert (found["tp-size"], found["attn-dp-size"], found["ep-size"]) == ("8", "4", "8")
    assert (found["max-running-requests"], found["chunked-prefill-size"], found["max-prefill-tokens"]) == ("400", "8192", "2048")
    assert (found["enable-eplb"], found["ep-num-redundant-experts"]) == (True, "16")


@pytest.mark.parametrize(
    ("spec", "name", "expected"),
    [
        (Speculation(draft_tokens=3), "llama3.1-8b", ("STANDALONE", "3", "1", "4")),
        (Speculation(method="tree", draft_tokens=4, tree_width=2), "llama3.1-8b", ("EAGLE", "4", "2", "9")),
        (Speculation(method="mtp", draft_tokens=2), "deepseek-v3", ("NEXTN", "2", "1", "3")),
    ],
)
def test_speculation(spec: Speculation, name: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    found = served(tmp_path, model_name=name, tp=8, speculation=spec, env={"DRAFT_MODEL": "draft", "MODEL": "mine"})
    keys = ("speculative-algorithm", "speculative-num-steps", "speculative-eagle-topk", "speculative-num-draft-tokens")
    assert tuple(found[key] for key in keys) == expected
    assert found.get("speculative-draft-model-path") == (None if spec.method == "mtp" else "draft")


def test_tiers_are_per_rank(tmp_path: Path) -> None:
    found = served(tmp_path, tp=8, prefix_cache=True, kv_tiers=(HOST, NVME), env={"KV_FOLDER": "/mnt/kv"})
    assert (found["enable-hierarchical-cache"], found["hicache-size"], found["hicache-storage-backend"]) == (True, "100", "file")


def test_prefill_and_decode_pools(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "tp": 2,
        "n_replicas": 2,
        "n_prefill": 2,
        "prefill": EnginePlan(tp=1, cp=2, prefix_cache=True, kv_tiers=(HOST,)),
    }
    prefill = served(tmp_path, "prefill", env={"BOOTSTRAP_PORT": "9100"}, **parts)
    assert (prefill["disaggregation-mode"], prefill["disaggregation-bootstrap-port"]) == ("prefill", "9100")
    assert (prefill["tp-size"], prefill["attn-cp-size"], prefill["enable-kv-cache-sharding"]) == ("2", "2", True)
    assert "enable-mixed-chunk" not in prefill
    decode = served(tmp_path, "decode", **parts)
    assert decode["disaggregation-mode"] == "decode"
    assert "enable-hierarchical-cache" not in decode
    files = sglang.emit(job_of(**parts))
    [router] = calls_of("sglang/router.sh", files, tmp_path)
    assert flags(router)["prefill"] == ["http://localhost:8100", "17098", "http://localhost:8101", "17099"]
    assert flags(router)["decode"] == ["http://localhost:8102", "http://localhost:8103"]
    assert "$((8998 + port))" in files["sglang/launch.sh"]


def test_replica_over_two_nodes(tmp_path: Path) -> None:
    [call] = calls_of("sglang/launch.sh", sglang.emit(job_of("llama3.1-405b", tp=16)), tmp_path, NODE_RANK="1", HOSTS="first second")
    found = flags(call)
    assert (found["nnodes"], found["node-rank"], found["dist-init-addr"], found["tp-size"]) == ("2", "1", "first:5000", "16")


def test_experts_over_more_than_a_node_are_sent_only_their_tokens(tmp_path: Path) -> None:
    wide = {"dp": 16, "ep": 16, "weight_dtype": "fp8_block"}
    files = sglang.emit(job_of("deepseek-v3", **wide, prefill=EnginePlan(**wide), n_prefill=1))
    given = {"REPLICA_RANK": "0", "MASTER_ADDR": "a"}
    found = [flags(*calls_of(f"sglang/{role}.sh", files, tmp_path, **given)) for role in ("prefill", "decode")]
    assert [(f["moe-a2a-backend"], f["deepep-mode"]) for f in found] == [("deepep", "normal"), ("deepep", "low_latency")]
    assert "deepep" not in sglang.emit(job_of("deepseek-v3", dp=8, ep=8, weight_dtype="fp8_block"))["sglang/serve.sh"]


def test_long_context(tmp_path: Path) -> None:
    found = served(tmp_path, prompt_tokens=200_000, rope_scaling=True, env={"ROPE_THETA": "500000.0"})
    assert json.loads(found["json-model-override-args"])["rope_parameters"]["factor"] == 2.0


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("qwen3-30b-a3b", {"pp": 2, "tp": 4, "ep": 8}, "ep=8 does not divide the 4 GPUs of a stage"),
        ("llama3.1-8b", {"cp": 2}, "cp=2: KV in equal parts over context ranks is for prefill replicas"),
        ("qwen3-30b-a3b", {"tp": 8, "redundant_experts": 8}, "redundant_experts=8 without ep"),
        ("llama3.1-8b", {"policy": "static"}, "policy=static"),
        ("minimax-m1", {"tp": 8}, "lightning attention of minimax-m1: not among its models; nearest: vLLM"),
        ("llama3.1-8b", {"preemption": "swap"}, "preemption by swapping"),
        ("llama3.1-8b", {"kv_dtype": "int8"}, "kv_dtype=int8; nearest: bf16, fp8 or nvfp4"),
        ("qwen3-30b-a3b", {"expert_dtype": "fp8"}, "experts in fp8 beside weights in bf16"),
        ("llama3.1-8b", {"speculation": Speculation(method="mtp")}, "has no multi-token-prediction layers"),
        ("llama3.1-8b", {"speculation": Speculation(gamma_by_batch=((4, 5),))}, "draft tokens by batch size"),
        ("llama3.1-8b", {"prefix_cache": True, "kv_tiers": (NVME,)}, "a KV tier on drives without one in host memory"),
        (
            "llama3.1-8b",
            {"prefix_cache": True, "kv_tiers": (KvTier(name="remote", capacity_bytes=1e13, bytes_per_s=1e9),)},
            "outside the node",
        ),
    ],
)
def test_refusals(name: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        sglang.emit(job_of(name, **parts))
