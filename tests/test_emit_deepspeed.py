"""ds_config.json: keys, batch triangle, offload and Ulysses; what DeepSpeed would ignore is refused, what it has no key for is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from emit_jobs import ALST, job_of
from hypothesis import given
from hypothesis import strategies as st
from roofplan.planner.emit.deepspeed import check_keys, config_of, emit, stage_of
from roofplan.planner.emit.target import CannotExpress
from roofplan.scenarios.errors import BadInput


def test_one_million_tokens_on_eight_gpus() -> None:
    config = json.loads(emit(job_of(**ALST))["ds_config.json"])
    assert config["sequence_parallel_size"] == 8
    assert config["seq_parallel_communication_data_type"] == "bf16"
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in config["zero_optimization"]
    assert config["activation_checkpointing"] == {"partition_activations": False, "cpu_checkpointing": True}
    assert config["data_types"] == {"keep_in_fp32_modules": ["rotary_emb"]}
    assert (config["train_batch_size"], config["bf16"]) == (1, {"enabled": True})


@given(
    dp=st.sampled_from([1, 2, 4, 8, 64]), cp=st.sampled_from([1, 2, 4, 8]), micro=st.integers(1, 5), accum=st.integers(1, 7),
    stage=st.integers(0, 3),
)  # fmt: skip
def test_batch_triangle_and_clipping(dp: int, cp: int, micro: int, accum: int, stage: int) -> None:
    """``train_batch_size = dp micro accum``: sequence ranks share a sample. Absent, DeepSpeed would clip at 1.0 without being asked."""
    kind = {"cp_kind": "ulysses"} if cp > 1 else {}
    n = dp * cp
    if n > 8 and n % 8:
        return
    config = config_of(job_of(dp=dp, cp=cp, micro_batch=micro, grad_accum=accum, zero_stage=stage, **kind))
    parts = (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"])
    assert config["train_batch_size"] == parts[0] * parts[1] * dp
    assert config["gradient_clipping"] == 1.0
    assert config["zero_optimization"]["stage"] == stage
    assert ("sequence_parallel_size" in config) == (cp > 1)
    check_keys(config)


def test_facts_set_learning_rate_and_clipping() -> None:
    config = config_of(job_of(dp=8, facts={"learning_rate": 3e-4, "gradient_clipping": 0.0}))
    assert config["optimizer"]["params"]["lr"] == 3e-4
    assert config["gradient_clipping"] == 0.0


def test_offloads() -> None:
    zero = config_of(job_of(dp=8, zero_stage=3, offload_optimizer=0.25, offload_params=1))["zero_optimization"]
    assert zero["offload_optimizer"]["ratio"] == 0.25
    assert zero["offload_param"]["device"] == "cpu"
    assert "ratio" not in config_of(job_of(dp=8, zero_stage=2, offload_optimizer=1))["zero_optimization"]["offload_optimizer"]


@pytest.mark.parametrize(
    ("layout", "stage"),
    [({"sharding": "ddp", "zero_stage": 1}, 0), ({"sharding": "fsdp", "zero_stage": 3}, 3), ({"sharding": "zero", "zero_stage": 2}, 2)],
)
def test_sharding_as_zero_stage(layout: dict[str, Any], stage: int) -> None:
    assert stage_of(job_of(dp=8, **layout)) == stage


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("optimizer", "kind"), [("lion", "Lion"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_optimizers_and_precisions(optimizer: str, kind: str, precision: str) -> None:
    config = config_of(job_of(dp=8, optimizer=optimizer, precision=precision))
    assert config["optimizer"]["type"] == kind
    assert ("bf16" in config, "fp16" in config) == (precision == "bf16", precision == "fp16")
    assert config.get("zero_allow_untested_optimizer", False) == (kind == "SGD")
    check_keys(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batchsize": 8}, "DeepSpeed 0.19.8 has no key 'train_batchsize' and would ignore it; nearest: train_batch_size"),
        ({"foo_bar": 1}, "has no key 'foo_bar'"),
        (
            {"activation_checkpointing": {"cpu_checkpoint": True}},
            "has no key activation_checkpointing.'cpu_checkpoint'.*nearest: cpu_checkpointing",
        ),
        ({"activation_checkpointing": {"partitioned_activations": True}}, "nearest: partition_activations"),
    ],
)
def test_keys_deepspeed_would_ignore_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_keys(config_of(job_of(dp=8)) | change)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tp": 8}, "tp=8: this target shards by ZeRO and Ulysses only; nearest: Megatron-LM"),
        ({"pp": 2, "tp": 4}, "tp=4 pp=2: this target"),
        ({"cp": 8, "cp_kind": "ring"}, "cp_kind=ring: DeepSpeed's sequence parallelism is Ulysses; nearest: cp_kind=ulysses"),
        ({"dp": 8, "sharding": "hsdp", "hsdp_group": 4}, "sharding=hsdp"),
        ({"dp": 8, "precision": "fp8"}, "precision=fp8: no DeepSpeed key"),
        ({"dp": 8, "optimizer": "mezo"}, "optimizer=mezo is research-only here.*nearest: optimizer=sgd"),
        ({"dp": 8, "optimizer": "adamw-8bit"}, "optimizer=adamw-8bit is research-only here"),
        ({"dp": 8, "optimizer": "adamw-bf16"}, "bf16 moments only with bf16 master weights"),
        ({"dp": 8, "zero_stage": 2, "offload_params": 1}, "offload_params with ZeRO stage 2"),
        ({"dp": 8, "zero_stage": 3, "offload_params": 0.5}, "offload_params=0.5: DeepSpeed offloads all parameters or none"),
        ({"dp": 8, "sharding": "ddp", "offload_optimizer": 1}, "offload_optimizer without ZeRO"),
        ({"dp": 8, "zero_stage": 2, "offload_optimizer": 0.5}, "offload_optimizer=0.5 under stage 2: a ratio needs stage 3"),
    ],
)
def test_what_it_cannot_express(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpress, match=message):
        emit(job_of(**layout))


def test_ulysses_needs_whole_heads() -> None:
    with pytest.raises(CannotExpress, match="cp=64 does not divide n_heads=32"):
        emit(job_of(cp=64, cp_kind="ulysses"))
    with pytest.raises(CannotExpress, match="cp=3 neither divides n_kv_heads=8 nor is a multiple of it"):
        emit(job_of("llama3.2-3b", seq_tokens=3 * 2**18, cp=3, cp_kind="ulysses"))
