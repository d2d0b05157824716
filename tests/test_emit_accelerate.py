"""accelerate.yaml launches train.py where it exists, and describes FSDP2 otherwise."""

from __future__ import annotations

import pytest
from emit_jobs import ALST, job_of
from roofplan.planner.emit.accelerate import config_of
from roofplan.planner.emit.target import CannotExpress


def test_deepspeed_by_reference() -> None:
    found = config_of(job_of(**ALST, dp=2))
    assert found["distributed_type"] == "DEEPSPEED"
    assert found["deepspeed_config"] == {
        "deepspeed_config_file": "ds_config.json", "zero3_init_flag": True, "deepspeed_multinode_launcher": "standard",
    }  # fmt: skip
    assert (found["num_processes"], found["num_machines"]) == (16, 2)
    assert "mixed_precision" not in found
    assert "main_process_ip" not in config_of(job_of(**ALST))


def test_fsdp_with_its_mesh() -> None:
    found = config_of(job_of(dp=4, tp=2, sharding="fsdp", zero_stage=3, recompute="full"))
    assert found["distributed_type"] == "FSDP"
    assert found["fsdp_config"]["fsdp_version"] == 2
    assert found["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] == "LlamaDecoderLayer"
    assert found["fsdp_config"]["fsdp_activation_checkpointing"]
    assert found["parallelism_config"] == {
        "parallelism_config_dp_replicate_size": 1, "parallelism_config_dp_shard_size": 4, "parallelism_config_tp_size": 2,
    }  # fmt: skip
    hsdp = config_of(job_of(dp=8, sharding="hsdp", hsdp_group=4, zero_stage=3))
    assert hsdp["parallelism_config"]["parallelism_config_dp_replicate_size"] == 2


def test_what_it_cannot_express() -> None:
    with pytest.raises(CannotExpress, match=r"neither DeepSpeed \(pp=2.*\) nor FSDP2 \(pp=2 ep=1"):
        config_of(job_of(pp=2, dp=4))
    with pytest.raises(CannotExpress, match=r"nor FSDP2 \(tiled_mlp, recompute=remat: no key\)"):
        config_of(job_of(dp=4, tp=2, sharding="fsdp", zero_stage=3, tiled_mlp=1, recompute="remat"))
