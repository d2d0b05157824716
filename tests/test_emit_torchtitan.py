"""torchtitan overrides: each part of the plan is a key of its configuration, and what has no switch is said."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from emit_jobs import job_of
from roofplan.planner.emit.target import CannotExpress
from roofplan.planner.emit.torchtitan import FLAVORS, checkpointing, emit, overrides
from roofplan.scenarios.registry import model

FSDP: dict[str, Any] = {"sharding": "fsdp", "zero_stage": 3}


def keys(name: str = "llama3-8b", seq: int = 8192, **layout: Any) -> dict[str, str]:
    return {key.removeprefix("--"): "".join(value) for key, *value in overrides(job_of(name, seq, **{**FSDP, **layout}))}


def test_layout() -> None:
    found = keys(dp=2, tp=2, cp=2, cp_kind="allgather")
    assert (found["module"], found["config"]) == ("llama3", "llama3_8b")
    assert found["parallelism.tensor_parallel_degree"] == found["parallelism.context_parallel_degree"] == "2"
    assert found["parallelism.data_parallel_shard_degree"] == "2"
    found = keys(dp=8, sharding="hsdp", hsdp_group=4)
    assert (found["parallelism.data_parallel_replicate_degree"], found["parallelism.data_parallel_shard_degree"]) == ("2", "4")
    found = keys(dp=8, sharding="zero", zero_stage=2)
    assert found["parallelism.fsdp_reshard_after_forward"] == "never"
    found = keys(dp=8, sharding="ddp", zero_stage=0)
    assert (found["parallelism.data_parallel_replicate_degree"], found["parallelism.data_parallel_shard_degree"]) == ("8", "1")
    assert "parallelism.no_enable_sequence_parallel" in keys(dp=4, tp=2, sequence_parallel=0)
    assert "training.enable_cpu_offload" in keys(dp=8, offload_optimizer=1, offload_params=1)


def test_pipeline_takes_all_micro_batches_at_once() -> None:
    found = keys(dp=2, pp=4, micro_batch=2, grad_accum=8)
    assert (found["training.local_batch_size"], found["parallelism.pipeline_parallel_microbatch_size"]) == ("16", "2")
    assert (found["training.global_batch_size"], found["parallelism.pipeline_parallel_layers_per_stage"]) == ("32", "8")
    found = keys(dp=2, micro_batch=2, grad_accum=8)
    assert found["training.local_batch_size"] == "2"


@pytest.mark.parametrize(
    ("schedule", "vpp", "name", "layers"),
    [("1f1b", 1, "1F1B", "16"), ("interleaved", 4, "Interleaved1F1B", "4"), ("zb1p", 1, "ZBVZeroBubble", "8")],
)
def test_schedules(schedule: str, vpp: int, name: str, layers: str) -> None:
    found = keys(pp=2, vpp=vpp, dp=4, grad_accum=4, schedule=schedule)
    assert (found["parallelism.pipeline_parallel_schedule"], found["parallelism.pipeline_parallel_layers_per_stage"]) == (name, layers)


@pytest.mark.parametrize(("pp", "first", "last", "per_stage", "less"), [(4, 7, 7, "9", ("2", "2")), (2, 15, 17, "17", ("2", "0"))])
def test_uneven_stages(pp: int, first: int, last: int, per_stage: str, less: tuple[str, str]) -> None:
    """Equal stages of ``layers_per_stage``, of which the outer ones hold ``less`` fewer: 7 + 9 + 9 + 7 = 32; 15 + 17 = 32."""
    found = keys(pp=pp, dp=8 // pp, grad_accum=4, layers_first=first, layers_last=last)
    assert found["parallelism.pipeline_parallel_layers_per_stage"] == per_stage
    got = tuple(found[f"parallelism.pipeline_parallel_{end}_stage_less_layers"] for end in ("first", "last"))
    assert got == less


def test_loss_chunks_hold_a_gibibyte_of_logits() -> None:
    """8192 tokens × 128,256 words × 4 bytes are 3.9 GiB: four chunks; untiled: one."""
    assert keys(dp=8, fused_loss=1)["loss.num_chunks"] == "4"
    assert keys(dp=8)["loss.num_chunks"] == "1"


def test_own_configuration_where_none_is_shipped() -> None:
    files = emit(job_of("llama3.2-1b", 8192, dp=8, **FSDP))
    text = files["torchtitan/roofplan_config.py"]
    ast.parse(text)
    assert 'model_registry("1B")' in text
    assert "--module roofplan_config" in files["torchtitan/run.sh"]
    assert 'export PYTHONPATH="$PWD' in files["torchtitan/run.sh"]
    fp8 = emit(job_of(dp=8, precision="fp8", **FSDP))["torchtitan/roofplan_config.py"]
    assert "Float8LinearConverter.Config" in fp8
    assert set(emit(job_of(dp=8, **FSDP))) == {"torchtitan/run.sh"}


def test_checkpointing_is_the_last_word() -> None:
    job = job_of(dp=8, recompute="full", **FSDP)
    assert checkpointing(job) == "activation_checkpoint:full"
    assert emit(job)["torchtitan/run.sh"].rstrip().endswith('"$@" activation_checkpoint:full')


def test_flavors_are_models_of_the_registry() -> None:
    for name in FLAVORS:
        assert model(name).name == name


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"model_name": "mixtral-8x7b", "dp": 8}, "torchtitan 0.3.0 has no model like mixtral-8x7b"),
        ({"cp": 8, "cp_kind": "ulysses"}, "cp_kind=ulysses: its context parallelism gathers keys and values"),
        ({"pp": 8, "schedule": "dualpipe"}, "schedule=dualpipe"),
        ({"dp": 8, "sharding": "zero", "zero_stage": 1}, "ZeRO stage 1"),
        ({"dp": 8, "recompute": "remat"}, "recompute=remat"),
        ({"dp": 8, "recompute": "full", "recompute_layers": 3}, "recompute of some layers only"),
        ({"dp": 8, "offload_optimizer": 1}, "offload of part of the state"),
        ({"dp": 8, "recompute": "full", "offload_activations": 1}, "offload_activations"),
        ({"dp": 8, "tiled_mlp": 1}, "tiled_mlp"),
        ({"dp": 8, "precision": "fp16"}, "precision=fp16"),
        ({"dp": 8, "precision": "fp8", "model_name": "qwen3-30b-a3b"}, "precision=fp8 of an MoE model"),
        ({"dp": 8, "optimizer": "lion"}, "optimizer=lion"),
        ({"dp": 8, "lora_rank": 4}, "lora_rank=4"),
        ({"dp": 8, "attention": "unfused"}, "attention=unfused"),
        ({"pp": 4, "dp": 2, "layers_first": 12, "layers_last": 4}, "outer stages of 12 and 4 layers of 32"),
        ({"pp": 3, "dp": 1, "seq_tokens": 8192}, "32 layers over 3 stages"),
    ],
)
def test_what_it_cannot_express(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        overrides(job_of(**{**FSDP, **layout}))
