"""train_fsdp2.py is emitted for FSDP2 × TP plans, and only for those."""

from __future__ import annotations

import json
from typing import Any

import pytest
from emit_jobs import job_of
from roofplan.planner.emit.fsdp import emit
from roofplan.planner.emit.target import CannotExpress

FSDP: dict[str, Any] = {"sharding": "fsdp", "zero_stage": 3}


@pytest.mark.parametrize(
    "layout",
    [
        {"dp": 8, **FSDP},
        {"dp": 4, "tp": 2, **FSDP, "tiled_mlp": 1, "fused_loss": 1},
        {"dp": 8, "sharding": "hsdp", "hsdp_group": 4, "zero_stage": 3},
        {"dp": 8, "zero_stage": 2},
        {"tp": 8},
        {"dp": 8, **FSDP, "offload_optimizer": 1, "offload_params": 1, "recompute": "remat", "offload_activations": 1},
    ],
)
def test_emitted(layout: dict[str, Any]) -> None:
    files = emit(job_of(**layout))
    assert set(files) == {"train_fsdp2.py", "launch_fsdp2.sh", "parts.py", "plan.json", "config.json"}
    assert "--nproc_per_node 8 train_fsdp2.py" in files["launch_fsdp2.sh"]
    assert json.loads(files["plan.json"])["plan"]["tp"] == layout.get("tp", 1)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cp": 8, "cp_kind": "ulysses", **FSDP}, "cp=8: this script splits the sequence by tp only; nearest: train.py"),
        ({"pp": 2, "dp": 4, **FSDP}, "pp=2 ep=1"),
        ({"dp": 8, "zero_stage": 1}, "sharding=zero stage 1"),
        ({"dp": 8, "sharding": "ddp"}, "sharding=ddp"),
        ({"dp": 8, "sharding": "hsdp", "zero_stage": 3}, "hsdp without hsdp_group"),
        ({"dp": 8, **FSDP, "offload_optimizer": 1}, "offload of part of the state"),
        ({"dp": 8, **FSDP, "precision": "fp8"}, "precision=fp8"),
        ({"dp": 8, **FSDP, "optimizer": "lion"}, "optimizer=lion"),
        ({"dp": 8, **FSDP, "lora_rank": 8}, "lora_rank=8"),
        ({"dp": 4, "tp": 2, **FSDP, "sequence_parallel": 0}, "tp without sequence_parallel"),
        ({"dp": 4, "tp": 2, **FSDP, "attention": "unfused"}, "attention=unfused under tp"),
        ({"tp": 16}, "tp=16 does not divide n_kv_heads=8"),
        ({"tp": 8, "seq_tokens": 1001}, "tp=8 does not divide seq_tokens=1001"),
        ({"dp": 4, "tp": 2, **FSDP, "model_name": "mixtral-8x7b"}, "tp=2 of an MoE model"),
    ],
)
def test_what_it_cannot_express(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        emit(job_of(**layout))
