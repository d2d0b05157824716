"""Deployments whose emitted scripts the real servers read, and the arguments those scripts start them with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit import hfconfig
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import KvTier, Speculation
from serve_jobs import calls_of, job_of

SERVE = Path(sys.prefix) / "serve"
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
