"""The ArcticTraining recipe carries the ALST switches, lies in a folder of its own, and refuses what would train wrongly."""

from __future__ import annotations

from typing import Any

import pytest
from emit_jobs import ALST, job_of
from roofplan.planner.emit.arctic import emit, recipe
from roofplan.planner.emit.target import CannotExpress


def test_recipe() -> None:
    found = recipe(job_of(**ALST))
    assert (found["sequence_parallel_size"], found["tiled_mlp_compute"], found["activation_checkpoint_cpu_offload"]) == (8, True, True)
    assert found["model"]["type"] == "liger"
    assert found["data"]["max_length"] == 2**20
    assert found["optimizer"]["type"] == "cpu_adam"
    assert found["deepspeed"]["gradient_clipping"] == 1.0
    assert found["deepspeed"]["seq_parallel_communication_data_type"] == "bf16"
    assert "optimizer" not in found["deepspeed"]
    plain = recipe(job_of(dp=8, zero_stage=2))
    assert (plain["model"]["type"], plain["optimizer"]["type"]) == ("huggingface", "fused_adam")
    assert plain["model"]["disable_activation_checkpoint"]


def test_it_lies_apart_from_train_py() -> None:
    """ArcticTraining imports a train.py beside its recipe."""
    assert list(emit(job_of(**ALST))) == ["arctictraining/alst.yml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_stage": 2}, "Ulysses under ZeRO stage 2: DeepSpeed 0.19.8 then sums gradients over sequence ranks; nearest: zero_stage=3"),
        ({"fused_loss": 0}, "an untiled loss under Ulysses"),
        ({"recompute": "remat"}, "recompute=remat"),
        ({"recompute_layers": 4}, "recompute of some layers only"),
        ({"offload_activations": 0.5}, "offload of part of the activations"),
        ({"recompute": "none"}, "offload of activations without recompute"),
        ({"precision": "fp16"}, "precision=fp16"),
        ({"optimizer": "lion"}, "optimizer=lion"),
        ({"lora_rank": 8}, "lora_rank=8"),
        ({"attention": "unfused"}, "attention=unfused"),
        ({"model_name": "megatron-1.7b", "cp": 1, "cp_kind": "none", "dp": 8}, "megatron-1.7b has no Hugging Face id"),
    ],
)
def test_what_it_cannot_express(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        emit(job_of(**{**ALST, **change}))
