"""Megatron-LM arguments: each part of the plan is a flag, and what has no flag is said."""

from __future__ import annotations

from typing import Any

import pytest
from emit_jobs import job_of
from roofplan.planner.emit.megatron import arguments, emit
from roofplan.planner.emit.target import CannotExpress


def flags(name: str = "llama3-8b", seq: int = 8192, gpu: str = "h100-sxm", **layout: Any) -> dict[str, tuple[str, ...]]:
    found = arguments(job_of(name, seq, gpu, **layout))
    assert len({a[0] for a in found}) == len(found), "a flag is given twice"
    return {flag: tuple(values) for flag, *values in found}


def test_model_shape() -> None:
    found = flags(dp=8)
    assert found["--num-layers"] == ("32",)
    assert found["--num-query-groups"] == ("8",)
    assert found["--normalization"] == ("RMSNorm",)
    assert {"--swiglu", "--disable-bias-linear", "--untie-embeddings-and-output-weights", "--group-query-attention"} <= set(found)
    gpt = flags("gpt3-175b", 2048, tp=8)
    assert gpt["--position-embedding-type"] == ("learned_absolute",)
    assert not {"--swiglu", "--disable-bias-linear", "--rotary-base", "--group-query-attention"} & set(gpt)
    assert "--add-qkv-bias" in flags("qwen2.5-7b", dp=8)
    assert "--qk-layernorm" in flags("qwen3-8b", dp=8)
    assert flags("gemma3-27b", tp=8)["--window-size"] == ("1023,0",)


def test_latent_attention_and_experts() -> None:
    found = flags("deepseek-v3", 4096, pp=16, ep=64, dp=128, grad_accum=32, layers_first=4, layers_last=1)
    assert found["--moe-layer-freq"] == ("([0]*3+[1]*58)",)
    assert (found["--kv-lora-rank"], found["--q-lora-rank"]) == (("512",), ("1536",))
    assert (found["--qk-head-dim"], found["--qk-pos-emb-head-dim"], found["--v-head-dim"]) == (("128",), ("64",), ("128",))
    assert found["--expert-model-parallel-size"] == ("64",)
    assert (found["--moe-router-num-groups"], found["--moe-router-group-topk"]) == (("8",), ("4",))
    assert found["--moe-shared-expert-intermediate-size"] == ("2048",)
    assert (found["--decoder-first-pipeline-num-layers"], found["--decoder-last-pipeline-num-layers"]) == (("4",), ("1",))
    assert "--kv-channels" not in found
    assert flags("mixtral-8x7b", 4096, tp=2, ep=4, dp=4)["--moe-layer-freq"] == ("1",)


@pytest.mark.parametrize(
    ("kind", "comm"), [("zigzag", "p2p"), ("allgather", "all_gather"), ("ulysses", "a2a"), ("ulysses-ring", "a2a+p2p")]
)
def test_context_parallelism(kind: str, comm: str) -> None:
    inner = {"cp_inner": 4} if kind == "ulysses-ring" else {}
    found = flags(cp=8, cp_kind=kind, **inner)
    assert (found["--context-parallel-size"], found["--cp-comm-type"]) == (("8",), (comm,))
    assert found.get("--hierarchical-context-parallel-sizes") == (("4", "2") if inner else None)


def test_layout_memory_and_precision() -> None:
    found = flags(tp=4, pp=2, vpp=4, dp=1, grad_accum=4, schedule="interleaved", recompute="full", recompute_layers=3)
    assert found["--num-virtual-stages-per-pipeline-rank"] == ("4",)
    assert (found["--recompute-method"], found["--recompute-num-layers"]) == (("block",), ("3",))
    assert "--sequence-parallel" in found
    assert flags(dp=8, recompute="full")["--recompute-method"] == ("uniform",)
    assert flags(dp=8, recompute="selective")["--recompute-granularity"] == ("selective",)
    assert "--use-distributed-optimizer" not in flags(dp=8, zero_stage=0)
    assert flags(dp=8, precision="fp8")["--fp8-recipe"] == ("tensorwise",)
    assert flags(dp=8, precision="fp8_block")["--fp8-format"] == ("e4m3",)
    assert flags(dp=8, optimizer="adamw-8bit")["--exp-avg-dtype"] == ("fp8",)
    assert flags(dp=8, offload_optimizer=0.5)["--optimizer-offload-fraction"] == ("0.5",)
    assert "--bf16" not in flags(dp=8, precision="fp32")


def test_one_connection_before_blackwell() -> None:
    assert "CUDA_DEVICE_MAX_CONNECTIONS=1" in emit(job_of(tp=8))["megatron/pretrain.sh"]
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in emit(job_of(dp=8))["megatron/pretrain.sh"]
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in emit(job_of(gpu="b200", tp=8))["megatron/pretrain.sh"]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cp": 8, "cp_kind": "ring"}, "cp_kind=ring: Megatron's ring is always balanced; nearest: cp_kind=zigzag"),
        ({"pp": 8, "schedule": "zb1p"}, "schedule=zb1p: no flag"),
        ({"pp": 8, "schedule": "dualpipe"}, "schedule=dualpipe: no flag"),
        ({"dp": 8, "zero_stage": 3}, "ZeRO stage 2 or 3 or FSDP; nearest: zero_stage=1"),
        ({"dp": 8, "recompute": "remat"}, "recompute=remat is research-only here"),
        ({"dp": 8, "offload_params": 1}, "offload_params: no flag"),
        ({"dp": 8, "recompute": "full", "offload_activations": 1}, "offload_activations of checkpoints"),
        ({"dp": 8, "tiled_mlp": 1}, "tiled_mlp"),
        ({"dp": 8, "fused_loss": 1}, "fused_loss"),
        ({"dp": 8, "lora_rank": 8}, "lora_rank=8"),
        ({"dp": 8, "optimizer": "lion"}, "optimizer=lion"),
        ({"dp": 8, "precision": "nvfp4"}, "precision=nvfp4"),
        ({"dp": 8, "optimizer": "sgd", "offload_optimizer": 1}, "offload of another optimizer than AdamW"),
    ],
)
def test_what_it_cannot_express(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        arguments(job_of(**layout))


def test_alibi_has_no_flag() -> None:
    with pytest.raises(CannotExpress, match="alibi positions: no flag"):
        arguments(job_of("mpt-7b-alibi", 2048, dp=8))
