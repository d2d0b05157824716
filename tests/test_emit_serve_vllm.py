"""vllm/: each option of a plan is a flag of `vllm serve`, parts of large replicas start on their nodes, what vLLM cannot do is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit.serve import vllm
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import KvTier, Speculation
from serve_jobs import calls_of, files_of, flags, job_of

HOST = KvTier(name="host", capacity_bytes=1e11, bytes_per_s=2e10)
NVME = KvTier(name="nvme", capacity_bytes=1e12, bytes_per_s=5e9)


def served(folder: Path, role: str = "serve", model_name: str = "llama3.1-8b", env: dict[str, str] | None = None, **parts: Any) -> Any:
    """What `vllm serve` is called with by the script of one role."""
    files = vllm.emit(job_of(model_name, **parts))
    [call] = calls_of(f"vllm/{role}.sh", files, folder, **(env or {}))
    assert call[:2] == ["vllm", "serve"]
    return flags(call) | {"model": call[2]}


def test_one_replica(tmp_path: Path) -> None:
    found = served(tmp_path, tp=2, token_budget=2048, max_num_seqs=128, prefix_cache=True)
    assert found == {
        "model": "meta-llama/Llama-3.1-8B", "host": "0.0.0.0", "port": "8000", "served-model-name": "llama3.1-8b",
        "max-model-len": "4500", "tensor-parallel-size": "2", "dtype": "bfloat16", "max-num-seqs": "128",
        "max-num-batched-tokens": "2048", "enable-chunked-prefill": True, "enable-prefix-caching": True,
        "gpu-memory-utilization": "0.9",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"pp": 2}, {"pipeline-parallel-size": "2"}),
        ({"weight_dtype": "fp8", "kv_dtype": "fp8"}, {"quantization": "fp8", "kv-cache-dtype": "fp8"}),
        ({"weight_dtype": "fp8_block"}, {"quantization": "fp8_per_block"}),
        ({"weight_dtype": "int8"}, {"quantization": "int8_per_channel_weight_only"}),
        ({"kv_dtype": "int8"}, {"kv-cache-dtype": "int8_per_token_head"}),
        ({"prefix_cache": False}, {"no-enable-prefix-caching": True}),
        ({"policy": "priority"}, {"scheduling-policy": "priority"}),
        ({"kv_blocks": 5000}, {"num-gpu-blocks-override": "5000"}),
        ({"block_tokens": 32}, {"block-size": "32"}),
        ({"context_tokens": 9000}, {"max-model-len": "9000"}),
    ],
)  # fmt: skip
def test_each_option_is_a_flag(parts: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    found = served(tmp_path, **parts)
    assert {name: found.get(name) for name in expected} == expected


def test_a_four_bit_checkpoint_that_asks_for_an_8_bit_cache_is_overruled(tmp_path: Path) -> None:
    found = served(tmp_path, weight_dtype="nvfp4", kv_dtype="bf16", env={"MODEL": "/models/four-bit"})
    assert found["kv-cache-dtype"] == "bfloat16"


HYBRID = "qwen3.5-397b-a17b"


def test_recurrent_states_are_in_32_bits_and_move_between_equal_tp(tmp_path: Path) -> None:
    assert served(tmp_path, model_name=HYBRID, tp=8)["mamba-ssm-cache-dtype"] == "float32"
    assert "mamba-ssm-cache-dtype" not in served(tmp_path, model_name="kimi-linear-48b-a3b", tp=8)
    with pytest.raises(CannotExpress, match="recurrent states in bf16"):
        vllm.emit(job_of(HYBRID, tp=8, state_dtype="bf16"))
    pools = {"n_prefill": 1, "prefill": EnginePlan(tp=4), "gpu": "h200", "n_gpus": 16}
    with pytest.raises(CannotExpress, match="recurrent states between pools of tp=4 and tp=8"):
        vllm.emit(job_of(HYBRID, tp=8, **pools))


def test_limits_are_of_one_scheduler(tmp_path: Path) -> None:
    """vLLM's limits are of one data rank, the plan's of the replica."""
    found = served(tmp_path, model_name="qwen3-30b-a3b", dp=4, ep=4, max_num_seqs=400, token_budget=8192, kv_blocks=8000)
    assert (found["data-parallel-size"], found["enable-expert-parallel"]) == ("4", True)
    assert (found["max-num-seqs"], found["max-num-batched-tokens"], found["num-gpu-blocks-override"]) == ("100", "2048", "2000")


def test_redundant_experts(tmp_path: Path) -> None:
    found = served(tmp_path, model_name="qwen3-30b-a3b", tp=4, ep=4, redundant_experts=16)
    assert found["enable-eplb"] is True
    assert json.loads(found["eplb-config"]) == {"num_redundant_experts": 16}


def test_speculation_by_batch(tmp_path: Path) -> None:
    """γ by batch becomes vLLM's (first, last, tokens) rows, 0 over the last; the draft model is the plan's or asked for."""
    spec = Speculation(gamma_by_batch=((4, 5), (16, 3)), draft_model="meta-llama/Llama-3.2-1B")
    found = served(tmp_path, speculation=spec, max_num_seqs=64)
    assert json.loads(found["speculative-config"]) == {
        "method": "draft_model",
        "num_speculative_tokens": 5,
        "num_speculative_tokens_per_batch_size": [[1, 4, 5], [5, 16, 3], [17, 64, 0]],
    }
    assert found["spec-model"] == "meta-llama/Llama-3.2-1B"
    assert vllm.gamma_ranges(Speculation(gamma_by_batch=((64, 2),)), 64) == [[1, 64, 2]]


def test_draft_model_is_asked_for(tmp_path: Path) -> None:
    found = served(tmp_path, speculation=Speculation(draft_tokens=4), env={"DRAFT_MODEL": "/models/draft one"})
    assert found["spec-model"] == "/models/draft one"
    with pytest.raises(AssertionError, match="set DRAFT_MODEL to the draft model"):
        served(tmp_path, speculation=Speculation(draft_tokens=4))


def test_mtp(tmp_path: Path) -> None:
    found = served(
        tmp_path, model_name="deepseek-v3", tp=8, ep=8, weight_dtype="fp8_block", speculation=Speculation(method="mtp", draft_tokens=2)
    )
    assert json.loads(found["speculative-config"]) == {"method": "mtp", "num_speculative_tokens": 2}
    assert "spec-model" not in found


def test_kv_tiers(tmp_path: Path) -> None:
    one = json.loads(served(tmp_path, prefix_cache=True, kv_tiers=(HOST,))["kv-transfer-config"])
    assert one == {
        "kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"cpu_bytes_to_use": 100_000_000_000},
    }  # fmt: skip
    env = {"KV_FOLDER": "/mnt/kv"}
    two = json.loads(served(tmp_path, prefix_cache=True, kv_tiers=(HOST, NVME), env=env)["kv-transfer-config"])
    assert two["kv_connector_extra_config"]["secondary_tiers"] == [{"type": "fs", "root_dir": "/mnt/kv"}]
    with pytest.raises(AssertionError, match="set KV_FOLDER"):
        served(tmp_path, prefix_cache=True, kv_tiers=(HOST, NVME))


def test_long_context_asks_for_the_rope_base(tmp_path: Path) -> None:
    """A stretched context needs the checkpoint's own base; vLLM wants the stretched length beside the factor."""
    parts: dict[str, Any] = {"prompt_tokens": 200_000, "rope_scaling": True, "tp": 4}
    found = served(tmp_path, env={"ROPE_THETA": "500000.0"}, **parts)
    assert json.loads(found["hf-overrides"]) == {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 2.0, "original_max_position_embeddings": 131072},
        "max_position_embeddings": 262144,
    }
    with pytest.raises(AssertionError, match="set ROPE_THETA"):
        served(tmp_path, **parts)


def test_four_bit_weights_need_their_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"set MODEL to a checkpoint of llama3\.1-8b in nvfp4"):
        served(tmp_path, weight_dtype="nvfp4")
    assert "quantization" not in served(tmp_path, weight_dtype="nvfp4", env={"MODEL": "mine"})
    found = served(tmp_path, model_name="deepseek-v3", tp=8, weight_dtype="fp8_block")
    assert (found["model"], found.get("quantization")) == ("deepseek-ai/DeepSeek-V3", None)
    with pytest.raises(AssertionError, match="set MODEL to a checkpoint of deepseek-v3 in fp8"):
        served(tmp_path, model_name="deepseek-v3", tp=8, weight_dtype="fp8")


def test_prefill_and_decode_pools(tmp_path: Path) -> None:
    """Producers and consumers, a process for each on GPUs and ports of its own, and a router that knows both pools."""
    parts: dict[str, Any] = {
        "tp": 2,
        "n_replicas": 2,
        "n_prefill": 4,
        "prefill": EnginePlan(tp=1, token_budget=8192),
        "router": "cache-aware",
    }
    assert json.loads(served(tmp_path, "prefill", **parts)["kv-transfer-config"]) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
    }
    decode = served(tmp_path, "decode", **parts)
    assert json.loads(decode["kv-transfer-config"]) == {"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}
    calls = calls_of("vllm/launch.sh", vllm.emit(job_of(**parts)), tmp_path)
    assert {call[0] for call in calls} <= {"vllm", "vllm-router"}
    [router] = calls_of("vllm/router.sh", vllm.emit(job_of(**parts)), tmp_path)
    found = flags(router)
    assert found["prefill"] == [f"http://localhost:{port}" for port in (8100, 8101, 8102, 8103)]
    assert found["decode"] == [f"http://localhost:{port}" for port in (8104, 8105)]
    assert (found["policy"], found["vllm-pd-disaggregation"], found["kv-connector"], found["port"]) == ("cache_aware", True, "nixl", "8000")


def test_offload_and_transfer_go_through_one_connector(tmp_path: Path) -> None:
    found = served(tmp_path, "prefill", tp=1, prefix_cache=True, kv_tiers=(HOST,), n_prefill=1)
    config = json.loads(found["kv-transfer-config"])
    assert config["kv_connector"] == "MultiConnector"
    assert [c["kv_connector"] for c in config["kv_connector_extra_config"]["connectors"]] == ["NixlConnector", "OffloadingConnector"]


def test_router_of_equal_replicas(tmp_path: Path) -> None:
    [call] = calls_of("vllm/router.sh", vllm.emit(job_of(tp=2, n_replicas=4, router="least-outstanding")), tmp_path)
    found = flags(call)
    assert found["worker-urls"] == [f"http://localhost:{port}" for port in range(8100, 8104)]
    assert found["policy"] == "sticky_least_loaded"


def test_replica_over_two_nodes(tmp_path: Path) -> None:
    """Each node starts its part: the first answers, the second is headless."""
    files = vllm.emit(job_of("llama3.1-405b", tp=8, pp=2))
    assert "vllm/router.sh" not in files
    both = {"HOSTS": "first second"}
    [call] = calls_of("vllm/launch.sh", files, tmp_path, NODE_RANK="0", **both)
    found = flags(call)
    assert (found["nnodes"], found["node-rank"], found["master-addr"]) == ("2", "0", "first")
    assert "headless" not in found
    assert found["port"] == "8000"  # where bench.sh asks, as no router stands before it
    [call] = calls_of("vllm/launch.sh", files, tmp_path, NODE_RANK="1", **both)
    assert flags(call) | {"node-rank": "1", "master-addr": "first", "headless": True} == flags(call)
    with pytest.raises(AssertionError, match="HOSTS names 1 nodes, 2 are needed"):
        calls_of("vllm/launch.sh", files, tmp_path, NODE_RANK="0", HOSTS="first")


def test_data_ranks_over_two_nodes(tmp_path: Path) -> None:
    files = vllm.emit(job_of("deepseek-v3", dp=16, ep=16, weight_dtype="fp8_block"))
    [call] = calls_of("vllm/launch.sh", files, tmp_path, NODE_RANK="1", HOSTS="a b")
    found = flags(call)
    assert (found["data-parallel-size"], found["data-parallel-size-local"], found["data-parallel-start-rank"]) == ("16", "8", "8")
    assert (found["data-parallel-address"], found["headless"]) == ("a", True)


def test_experts_over_more_than_a_node_are_sent_only_their_tokens(tmp_path: Path) -> None:
    """As they are priced: DeepEP's kernels for prompts in the prefill pool, those for answers elsewhere; up to 8 ranks gather."""
    wide = {"dp": 16, "ep": 16, "weight_dtype": "fp8_block"}
    files = vllm.emit(job_of("deepseek-v3", **wide, prefill=EnginePlan(**wide), n_prefill=1))
    given = {"REPLICA_RANK": "0", "MASTER_ADDR": "a"}
    sent = [flags(*calls_of(f"vllm/{role}.sh", files, tmp_path, **given))["all2all-backend"] for role in ("prefill", "decode")]
    assert sent == ["deepep_high_throughput", "deepep_low_latency"]
    assert "DeepEP" in files_of("deepseek-v3", **wide)["README.md"]
    assert "all2all" not in vllm.emit(job_of("deepseek-v3", dp=8, ep=8, weight_dtype="fp8_block"))["vllm/serve.sh"]


def test_launcher_gives_each_replica_its_gpus(tmp_path: Path) -> None:
    files = vllm.emit(job_of(tp=2, n_replicas=2, n_prefill=2))
    files["vllm/prefill.sh"] = files["vllm/decode.sh"] = (
        'echo "$CUDA_VISIBLE_DEVICES $PORT $VLLM_NIXL_SIDE_CHANNEL_PORT" >> seen\nsleep 0.3\n'
    )
    files["vllm/router.sh"] = "sleep 0.3\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["bash", "launch.sh"], cwd=tmp_path / "vllm", check=True, timeout=60)
    seen = sorted((tmp_path / "vllm" / "seen").read_text().splitlines())
    assert seen == ["0,1 8100 5600", "2,3 8101 5664", "4,5 8102 5728", "6,7 8103 5792"]


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("qwen3-30b-a3b", {"tp": 8, "ep": 4}, "ep=4: experts are spread over all tp x dp x cp = 8 GPUs of a stage; nearest: ep=8 or 1"),
        ("llama3.1-8b", {"policy": "orca"}, "policy=orca; nearest: vLLM's own scheduler"),
        ("llama3.1-8b", {"preemption": "swap"}, "preemption by swapping: the V1 engine recomputes"),
        ("llama3.1-8b", {"speculation": Speculation(method="tree", tree_width=2)}, "tree drafts: the V1 engine checks chains"),
        ("llama3.1-8b", {"speculation": Speculation(method="mtp")}, r"method=mtp: llama3\.1-8b has no multi-token-prediction layers"),
        ("llama3.1-8b", {"cp": 2}, "cp=2: prompts split over ranks keep KV in equal parts for latent attention"),
        ("deepseek-v3", {"tp": 8, "cp": 2, "n_prefill": 1, "prefill": EnginePlan(tp=8), "n_gpus": 24}, "cp=2 on replicas that receive KV"),
        ("qwen3-30b-a3b", {"tp": 8, "redundant_experts": 8}, "redundant_experts=8 without ep"),
        ("llama3.1-8b", {"kv_dtype": "fp6"}, "kv_dtype=fp6"),
        ("qwen3-30b-a3b", {"expert_dtype": "fp8"}, "experts in fp8 beside weights in bf16, converted while loading"),
        ("llama3.1-8b", {"prefix_cache": True, "kv_tiers": (NVME,)}, "a KV tier on drives without one in host memory"),
        (
            "llama3.1-8b",
            {"prefix_cache": True, "kv_tiers": (HOST, KvTier(name="remote", capacity_bytes=1e13, bytes_per_s=1e9))},
            "KV tier 'remote' outside the node",
        ),
        ("llama3.1-405b", {"tp": 16, "dp": 2, "n_gpus": 32}, "16 GPUs of one data rank span nodes"),
    ],
)
def test_refusals(name: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        vllm.emit(job_of(name, **parts))


def test_context_parallel_of_latent_attention(tmp_path: Path) -> None:
    found = served(tmp_path, model_name="deepseek-v3", tp=8, cp=2, weight_dtype="fp8_block", env={"MASTER_ADDR": "a", "REPLICA_RANK": "0"})
    assert (found["prefill-context-parallel-size"], found["decode-context-parallel-size"]) == ("2", "2")
